"""In Lightning's Trainer: how noisy are the gradients? Three lines more: an import, a callback, a report.

python examples/08_noise_lightning.py
"""

import lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import batchscope as bs
from batchscope.integrations.lightning import NoiseCallback


class Classifier(lightning.LightningModule):
    """As written for Lightning; nothing of ours in it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def main() -> bs.NoiseReport:
    """Batch size 64: micro-batches of 16, four per optimiser step, which are the parts that are compared."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels))
    loader = DataLoader(data, batch_size=16, shuffle=True, drop_last=True)

    noise = NoiseCallback(every=1, data_size=len(data))  # a short run; default: so often that it costs 2 %
    trainer = lightning.Trainer(
        max_epochs=12,
        accumulate_grad_batches=4,
        callbacks=[noise],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(), loader)

    report = noise.report()
    print(report)
    return report


if __name__ == "__main__":
    main()
