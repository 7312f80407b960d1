"""What does batch size do to a small fully connected network on real images? Plain SGD, one hidden layer.

Plain SGD, without momentum and without decay: what is seen is the batch size and the learning rate, nothing else.
"""

import torch
import torch.nn.functional as F
from torch import nn

from batchscope.task import Goal, Task
from batchscope.tasks.fashion_mnist import load


def make_model() -> nn.Module:
    """784 pixels, 128 hidden units, 10 classes: 101,770 parameters."""
    return nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 128), nn.ReLU(), nn.Linear(128, 10))


def task() -> Task:
    """The task. Its own point needs 165,000 to 212,000 examples (4 epochs, 6 s on one core; measured, four seeds).

    Plain SGD with the learning rate tuned in factors of two reached the goal after 89,000 examples at batch size 8,
    95,000 to 156,000 at 64 (three seeds), 147,000 at 128 and 310,000 at 512 (one seed each): B_crit is 100 to 200.
    """
    data = load()
    return Task(
        name="fashion-mnist-mlp",
        model=make_model,
        loss=F.cross_entropy,
        train=data.train,
        valid=data.valid,
        test=data.test,
        metrics={"accuracy": lambda output, target: (output.argmax(1) == target).float().mean()},
        optimizer=lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr),
        lr=0.05,
        batch_size=64,
        goal=Goal("loss", at_most=0.36),
        budget=16 * len(data.train[0]),
    )
