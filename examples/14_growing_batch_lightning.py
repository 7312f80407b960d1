"""In Lightning's Trainer: a batch that grows with the gradient noise. Two callbacks; a checkpoint holds how far it is.

python examples/14_growing_batch_lightning.py
"""

import lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import batchscope as bs
from batchscope.integrations.lightning import GrowingBatchCallback, NoiseCallback


class Classifier(lightning.LightningModule):
    """As written for Lightning; the schedule is made for the steps of the first batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main() -> bs.BatchSizeController:
    """Batch size 32 to begin with: one of the loader's batches per optimiser step, then more and more of them."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels))
    loader = DataLoader(data, batch_size=32, shuffle=True, drop_last=True)

    noise = NoiseCallback(every=4)
    growing = GrowingBatchCallback(
        "with the noise scale",
        noise=noise,
        most=512,
        scale="linear",  # plain SGD; for Adam: "square root"
    )
    trainer = lightning.Trainer(
        max_epochs=20,
        callbacks=[noise, growing],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(), loader)

    controller = growing.controller
    print(*controller.changes, sep="\n")
    print(f"{controller.steps} steps, {controller.examples:,} examples")
    return controller


if __name__ == "__main__":
    main()
