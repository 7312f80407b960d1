"""In Lightning's Trainer: how many seconds does an optimiser step take? A callback that tells a meter.

python examples/05_step_meter_lightning.py
"""

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import batchscope as bs
from batchscope.integrations.lightning import StepMeterCallback
from batchscope.records import TimingPass


class Regression(lightning.LightningModule):
    """As written for Lightning; nothing of ours in it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 1))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.001)


def main() -> TimingPass:
    """Batch size 128: micro-batches of 64, two per optimiser step."""
    x = torch.randn(8192, 64, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=64, shuffle=True)

    meter = bs.StepMeter(loop="Lightning")
    trainer = lightning.Trainer(
        max_epochs=12,
        accumulate_grad_batches=2,
        callbacks=[StepMeterCallback(meter)],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(Regression(), loader)

    timing = meter.report()
    for t in timing.timings:
        middle = sorted(t.seconds_per_step)[len(t.seconds_per_step) // 2]
        print(f"batch size {t.batch_size}: {middle * 1e6:,.0f} us per step ({timing.loop})")
    return timing


if __name__ == "__main__":
    main()
