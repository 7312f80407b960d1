"""A map-style Dataset with random augmentation, a custom step with a dict batch, a schedule and clipping.

    batchscope study examples/03_dataset.py --batch-sizes 8,32 --policy held

Whatever `__getitem__` draws from torch's, numpy's or Python's generator follows (seed, epoch, index): it is the same at
every batch size, and after a resume.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import Dataset

import batchscope as bs


class ShiftedDigits(Dataset):
    """8 x 8 digits, moved by up to one pixel when `shift` is set."""

    def __init__(self, part: slice, shift: bool) -> None:
        data = load_digits()
        self.images = torch.tensor(data.images[part], dtype=torch.float32) / 16
        self.labels, self.shift = torch.tensor(data.target[part]), shift

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image = self.images[index]
        if self.shift:
            image = image.roll(tuple(torch.randint(-1, 2, (2,)).tolist()), (0, 1))
        return {"image": image[None], "label": self.labels[index]}


def make_model() -> nn.Module:
    """A small convolutional network."""
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))


def step(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The mean loss of one batch."""
    return F.cross_entropy(model(batch["image"]), batch["label"])


def evaluate(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Means over one batch; the loss must be among them."""
    output = model(batch["image"])
    hit = (output.argmax(1) == batch["label"]).float().mean()
    return {"loss": F.cross_entropy(output, batch["label"]), "accuracy": hit}


def task() -> bs.Task:
    """512 examples to train on, 256 to validate."""
    return bs.Task(
        name="shifted-digits",
        model=make_model,
        step=step,
        evaluate=evaluate,
        train=ShiftedDigits(slice(0, 512), shift=True),
        valid=ShiftedDigits(slice(512, 768), shift=False),
        optimizer=lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9),
        schedule=lambda optimizer, steps: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
        clip_norm=5.0,
        lr=0.05,
        batch_size=16,
        goal=bs.Goal("accuracy", at_least=0.8),
        budget=8 * 512,
    )
