"""In Transformers' Trainer: how many seconds does an optimiser step take? A callback that tells a meter.

python examples/06_step_meter_transformers.py
"""

import tempfile

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

import batchscope as bs
from batchscope.integrations.transformers import StepMeterCallback
from batchscope.records import TimingPass


class Regression(nn.Module):
    """Any model that returns its loss, as Trainer wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 1))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        output = self.net(x)
        return {"loss": nn.functional.mse_loss(output, labels), "logits": output}


def main() -> TimingPass:
    """Batch size 128: micro-batches of 64, two per optimiser step."""
    x = torch.randn(8192, 64, generator=torch.Generator().manual_seed(0))
    data = [{"x": row, "labels": row.sum(0, keepdim=True)} for row in x]

    meter = bs.StepMeter(loop="Transformers")
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=12,
            per_device_train_batch_size=64,
            gradient_accumulation_steps=2,
            learning_rate=0.001,
            use_cpu=True,
            dataloader_pin_memory=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        Trainer(model=Regression(), args=arguments, train_dataset=data, callbacks=[StepMeterCallback(meter)]).train()

    timing = meter.report()
    for t in timing.timings:
        middle = sorted(t.seconds_per_step)[len(t.seconds_per_step) // 2]
        print(f"batch size {t.batch_size}: {middle * 1e6:,.0f} us per step ({timing.loop})")
    return timing


if __name__ == "__main__":
    main()
