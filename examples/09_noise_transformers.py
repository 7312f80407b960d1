"""In Transformers' Trainer: how noisy are the gradients? Three lines more: an import, a callback, a report.

python examples/09_noise_transformers.py
"""

import tempfile

import torch
from sklearn.datasets import load_digits
from torch import nn
from transformers import Trainer, TrainingArguments, set_seed

import batchscope as bs
from batchscope.integrations.transformers import NoiseCallback


class Classifier(nn.Module):
    """Any model that returns its loss, as Trainer wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        output = self.net(x)
        return {"loss": nn.functional.cross_entropy(output, labels), "logits": output}


def main() -> bs.NoiseReport:
    """Batch size 64; gradients are clipped, as Trainer does by default: the monitor sees them as they were before."""
    set_seed(0)
    images, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(images, dtype=torch.float32) / 16
    data = [{"x": x, "labels": label} for x, label in zip(pixels, torch.tensor(labels), strict=True)]

    noise = NoiseCallback(every=1, data_size=len(data))  # a short run; default: so often that it costs 2 %
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=12,
            per_device_train_batch_size=64,
            dataloader_drop_last=True,
            optim="sgd",
            learning_rate=0.1,
            lr_scheduler_type="constant",
            use_cpu=True,
            dataloader_pin_memory=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        Trainer(model=Classifier(), args=arguments, train_dataset=data, callbacks=[noise]).train()

    report = noise.report()
    print(report)
    return report


if __name__ == "__main__":
    main()
