"""What does batch size do to a one-second training run? 1,797 handwritten digits, 8 x 8 pixels, and a small network.

The data are in scikit-learn's own wheel: nothing is downloaded. 1,024 training images, so that every power of two cuts
an epoch evenly; the other 773 are for validation and test.
"""

import torch
import torch.nn.functional as F
from torch import nn

from batchscope.errors import TaskError
from batchscope.task import Goal, Task

TRAIN, VALID = 1024, 512  # the remaining 261 are the test set
SPLIT_SEED = 0
BRIGHTEST = 16  # pixels are counts of 0 to 16 in a 4 x 4 block (scikit-learn's description of the data)


def task() -> Task:
    """The task. Its own point needs about 22,000 examples (22 epochs, 0.4 s on one core; measured, two seeds).

    Plain SGD with the learning rate tuned in factors of two reached the goal after 3,000 examples at batch size 8,
    5,700 at 32, 12,000 at 128, 35,000 at 512 and 74,000 at 1,024 (means of two seeds): B_crit is about 40.
    """
    images, labels = load()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
    train, valid, test = order.split([TRAIN, VALID, len(order) - TRAIN - VALID])
    return Task(
        name="digits",
        model=lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)),
        loss=F.cross_entropy,
        train=(images[train], labels[train]),
        valid=(images[valid], labels[valid]),
        test=(images[test], labels[test]),
        metrics={"accuracy": lambda output, target: (output.argmax(1) == target).float().mean()},
        optimizer=lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr),
        lr=0.1,
        batch_size=32,
        goal=Goal("loss", at_most=0.18),
        budget=96 * TRAIN,
    )


def load() -> tuple[torch.Tensor, torch.Tensor]:
    """(1797, 64) float32 images in [0, 1] and (1797,) int64 labels; TaskError without scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise TaskError(
            "task 'digits' expected scikit-learn, whose wheel holds the images, and it cannot be imported: "
            "run pip install 'scikit-learn>=1.7'"
        ) from error
    data = load_digits()
    return torch.from_numpy(data.data).float() / BRIGHTEST, torch.from_numpy(data.target).long()
