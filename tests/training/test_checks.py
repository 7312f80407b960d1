"""Every task that cannot be measured is refused in one sentence, and unusual ones that can are not."""

import collections

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler as schedules
from torch.utils.data import Dataset

from batchscope.errors import TaskError, UnsupportedTask, UsageError
from batchscope.records import Goal
from batchscope.training.checks import check_batch_sizes, check_task
from batchscope.training.loop import train
from toys import CPU, SIZE, Augmented, examples, mlp, mlp_with_state, sgd, toy, trial

X, Y = examples(SIZE)
SHARED = mlp()


def partly_shared():
    return nn.Sequential(SHARED, nn.Linear(3, 3))


def unseeded():
    model = mlp()
    with torch.no_grad():
        model[0].weight += float(np.random.default_rng().normal())
    return model


def frozen():
    return mlp().requires_grad_(False)


def squares(output, target):
    return output.pow(2).mean()


class OwnGenerator(Augmented):
    def __init__(self):
        super().__init__()
        self.generator = np.random.default_rng(0)

    def __getitem__(self, index):
        return self.x[index] + float(self.generator.random()), self.y[index]


class Fails(Augmented):
    def __getitem__(self, index):
        raise OSError("no such image")


class Closure(torch.optim.SGD):
    def step(self, closure):
        return super().step(closure)


def raises(*_):
    raise KeyError("mine")


def schedule_raises_late(optimizer, steps):
    return schedules.OneCycleLR(optimizer, optimizer.param_groups[0]["lr"], total_steps=100)


REFUSED = {
    "batch size above the data": ({"batch_size": 47}, r"at most the 46 training examples, got 47: lower"),
    "model raises": ({"model": raises}, r"make a model, it raised KeyError: 'mine'"),
    "not a module": ({"model": lambda: 3}, r"return an nn.Module, got int"),
    "one module": ({"model": lambda: SHARED}, r"a fresh model each time, got two models that share weights.*inside"),
    "shared trunk": ({"model": partly_shared}, r"a fresh model each time"),
    "lazy": ({"model": lambda: nn.Sequential(nn.LazyLinear(3))}, r"initialised parameters, got lazy ones"),
    "nothing to train": ({"model": frozen}, r"parameters to train, got none that require gradient: unfreeze"),
    "no parameters": ({"model": nn.Identity}, r"parameters to train"),
    "optimiser raises": ({"optimizer": raises}, r"make an optimiser, it raised KeyError"),
    "several optimisers": ({"optimizer": lambda m, lr: [sgd(m, lr)] * 2}, r"one torch optimiser, got a list of 2"),
    "not an optimiser": ({"optimizer": lambda m, lr: "SGD"}, r"a torch optimiser, got str"),
    "LBFGS": (
        {"optimizer": lambda m, lr: torch.optim.LBFGS(m.parameters())},
        r"LBFGS, whose step needs a closure",
    ),
    "closure": ({"optimizer": lambda m, lr: Closure(m.parameters(), lr=lr)}, r"Closure, whose step needs a closure"),
    "other parameters": ({"optimizer": lambda m, lr: sgd(SHARED, lr)}, r"the model it was given, got one of other"),
    "lr not passed on": (
        {"optimizer": lambda m, lr: sgd(m, 0.1)},
        r"follow the lr .*got the same ones at 0.05 and 0.1",
    ),
    "schedule overrides lr": ({"schedule": lambda o, n: schedules.OneCycleLR(o, 0.1, total_steps=n)}, r"max_lr"),
    "schedule raises": ({"schedule": raises}, r"make a scheduler, it raised KeyError"),
    "schedule too short": ({"schedule": schedule_raises_late}, r"1000 steps, after 100 it raised ValueError"),
    "plateau": ({"schedule": lambda o, n: schedules.ReduceLROnPlateau(o)}, r"ReduceLROnPlateau \(not supported\)"),
    "not a scheduler": ({"schedule": lambda o, n: None}, r"a scheduler with step and state_dict, got NoneType"),
    "unreadable data": (
        {"train": Fails()},
        r"to read the first 8 training examples, it raised OSError: no such image",
    ),
    "own generator": ({"train": OwnGenerator()}, r"read the same twice .*got different ones: draw augmentation"),
    "three tensors": ({"train": (X, Y, Y)}, r"batches \(input, target\), got 3 parts: write step="),
    "dict batches": ({"train": Augmented(), "collate_fn": lambda items: {"x": X}}, r"\(input, target\), got a dict"),
    "output against targets": (
        {"model": lambda: nn.Linear(5, 2), "train": (X, Y + 5)},
        r"output of shape \(8, 2\) float32 and target of shape \(8,\) int64, it raised IndexError: Target \d+ is out",
    ),
    "input against model": (
        {"model": lambda: nn.Linear(4, 3)},
        r"input of shape \(8, 5\) float32, it raised RuntimeError",
    ),
    "loss per example": ({"loss": lambda o, y: F.cross_entropy(o, y, reduction="none")}, r"scalar .*shape \(8,\)"),
    "loss is a number": ({"loss": lambda o, y: F.cross_entropy(o, y).item()}, r"scalar tensor .*got float"),
    "NaN at the start": ({"train": (X * torch.nan, Y)}, r"a finite loss at initialisation, got nan"),
    "detached": ({"loss": lambda o, y: F.cross_entropy(o.detach(), y)}, r"carry gradient, got one that does not"),
    "no gradient": ({"loss": lambda o, y: 0.0 * F.cross_entropy(o, y)}, r"gradient to reach the parameters, got none"),
    "unseeded": ({"model": unseeded}, r"two passes with the same seed to agree, got losses .* draw all randomness"),
    "sum": (
        {"loss": lambda o, y: F.cross_entropy(o, y, reduction="sum")},
        r"a mean over the batch, got",
    ),
    "noisy sum": (
        {"loss": lambda o, y: F.cross_entropy(o + torch.randn_like(o), y, reduction="sum")},
        r"a mean over the batch, got .* use reduction='mean'",
    ),
    "validation data": ({"valid": (X[:, :4], Y)}, r"to evaluate the validation data, it raised RuntimeError"),
    "test data": ({"test": (X[:, :4], Y)}, r"to evaluate the test data, it raised RuntimeError"),
    "metric raises": ({"metrics": {"f1": raises}}, r"to evaluate the validation data, it raised KeyError"),
    "evaluate without loss": (
        {"step": lambda m, b: F.cross_entropy(m(b[0]), b[1]), "evaluate": lambda m, b: {"f1": 1.0}},
        r"evaluate to return a 'loss', got \['f1'\]",
    ),
    "NaN in validation": ({"valid": (X * torch.nan, Y)}, r"a finite validation loss at initialisation, got nan"),
    "unknown metric": (
        {"step": lambda m, b: F.cross_entropy(m(b[0]), b[1]), "goal": Goal("accuracy", at_least=0.9)},
        r"the goal's metric among \['loss'\], got 'accuracy'",
    ),
    "goal met": ({"goal": Goal("loss", at_most=50.0)}, r"validation loss <= 50, which initialisation already meets"),
    "goal met above": ({"goal": Goal("accuracy", at_least=0.0)}, r"already meets .*: set a harder one"),
    "NaN after a step": (
        {"loss": squares, "lr": 1e30, "goal": None},
        r"after the first step at its own point \(lr=1e\+30, ",
    ),
    "step raises": (
        {"optimizer": lambda m, lr: type("Odd", (torch.optim.SGD,), {"step": raises})(m.parameters(), lr)},
        r"mine",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence(name):
    changes, sentence = REFUSED[name]
    with pytest.raises(TaskError, match=sentence) as refused:
        check_task(toy(**changes))
    said = str(refused.value)
    assert said.startswith("task 'toy': expected ")
    assert ": " in said.split("expected", 1)[1]
    assert "\n" not in said
    assert isinstance(refused.value, UnsupportedTask) == any(s in said for s in ("not supported", "lazy"))


def test_noisy_losses_and_dropout_pass():
    """A diffusion-like loss draws at every pass; it is still a mean."""
    noisy = toy(loss=lambda o, y: (o - torch.randn_like(o)).pow(2).mean(), metrics={}, model=mlp_with_state)
    assert check_task(noisy).metrics == ("loss",)


class Tied(nn.Module):
    """Tied weights, a frozen layer, and a parameter that nothing uses."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 5), nn.Linear(5, 5)
        self.last.weight = self.first.weight
        self.fixed, self.unused = nn.Linear(5, 3).requires_grad_(False), nn.Parameter(torch.zeros(4))

    def forward(self, x):
        return self.fixed(self.last(self.first(x).tanh()))


class TrainingOnly(nn.Module):
    """Like a detector: losses in training mode, detections in eval mode."""

    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x, y):
        return {"loss": F.cross_entropy(self.net(x), y)} if self.training else [{"label": self.net(x).argmax(1)}]


def detector_evaluate(model, batch):
    found = model(*batch)[0]["label"]
    return {"loss": (found != batch[1]).float().mean()}


class Dicts(Dataset):
    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        return {"features": X[index], "labels": Y[index]}


def dict_loss(model, batch):
    return F.cross_entropy(model(batch["features"]), batch["labels"])


def dict_evaluate(model, batch):
    return {
        "loss": dict_loss(model, batch),
        "accuracy": (model(batch["features"]).argmax(1) == batch["labels"]).float().mean(),
    }


def frozen_norm():
    model = mlp_with_state()
    model[1].eval().requires_grad_(False)
    return model


def two_rates(model, lr):
    """No group has the learning rate itself, and both follow it."""
    return torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": lr / 10}, {"params": model[2].parameters(), "lr": lr / 2}]
    )


VALID_TASKS = {
    "plain": {},
    "step and evaluate with dicts": {
        "train": Dicts(),
        "valid": Dicts(),
        "step": dict_loss,
        "evaluate": dict_evaluate,
        "loss": None,
    },
    "user dicts": {
        "train": Dicts(),
        "valid": Dicts(),
        "step": dict_loss,
        "loss": None,
        "goal": None,
        "collate_fn": lambda items: collections.UserDict(torch.utils.data.default_collate(items)),
    },
    "tied, frozen, unused": {"model": Tied},
    "dropout, batch norm": {"model": mlp_with_state},
    "frozen batch norm": {"model": frozen_norm},
    "augmented data set": {"train": Augmented(), "valid": Augmented(20)},
    "scalar regression": {
        "model": lambda: nn.Sequential(nn.Linear(5, 1), nn.Flatten(0)),
        "loss": F.mse_loss,
        "train": (X, X[:, 0]),
        "valid": (X, X[:, 0]),
        "metrics": {},
        "goal": None,
    },
    "Adam": {"optimizer": lambda m, lr: torch.optim.Adam(m.parameters(), lr=lr)},
    "two rates": {"optimizer": two_rates},
    "learning rate as a tensor": {"optimizer": lambda m, lr: torch.optim.Adam(m.parameters(), lr=torch.tensor(lr))},
    "one cycle": {"schedule": lambda o, n: schedules.OneCycleLR(o, o.param_groups[0]["lr"], total_steps=n)},
    "warm-up": {"schedule": lambda o, n: schedules.LambdaLR(o, lambda s: min(1.0, (s + 1) / 10))},
    "training-only loss": {
        "model": TrainingOnly,
        "step": lambda m, b: m(*b)["loss"],
        "evaluate": detector_evaluate,
        "loss": None,
        "goal": None,
        "metrics": {},
    },
    "bf16": {"precision": "bf16"},
    "sparse": {
        "model": lambda: nn.Sequential(nn.EmbeddingBag(5, 3, sparse=True)),
        "train": (Y[:, None], Y),
        "valid": (Y[:, None], Y),
        "optimizer": lambda m, lr: torch.optim.SGD(m.parameters(), lr=lr),
    },
    "in place": {"model": lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 3))},
    "test set": {"test": examples(9)},
}


@pytest.mark.parametrize("name", VALID_TASKS)
def test_unusual_tasks_pass_and_train(name):
    task = toy(**VALID_TASKS[name])
    checked = check_task(task)
    assert checked == check_task(task)
    assert checked.metrics[0] == "loss"
    result = train(task, trial(8, lr=task.lr, precision=task.precision), device=CPU)
    assert result.outcome == "not_reached", result.reason
    assert result.trace[-1].distance > 0


def test_batch_sizes_are_sorted_whole_and_fit():
    task = toy()
    assert check_batch_sizes(task, [32, 1, 46]) == (1, 32, 46)
    assert check_batch_sizes(task, 2 ** np.arange(3)) == (1, 2, 4)
    for sizes, sentence in {
        (0,): r"from 1 up, got 0",
        (-4,): r"got -4",
        (2.5,): r"got 2.5",
        (True,): r"got True",
        ("8",): r"got '8'",
        (47,): r"up to the 46 training examples of 'toy', got 47",
        (): r"at least one batch size, got none",
        (8, 4, 8): r"each batch size once, got 8 2 times",
    }.items():
        with pytest.raises(UsageError, match=sentence):
            check_batch_sizes(task, sizes)


def test_batch_norm_refuses_one_example_with_the_reason():
    task = toy(model=mlp_with_state)
    assert check_batch_sizes(task, [2, 4, 46]) == (2, 4, 46)
    with pytest.raises(TaskError, match=r"got a batch size of 1, where batch norm has no variance over one example"):
        check_batch_sizes(task, [1, 8])
    with pytest.raises(TaskError, match=r"batch size 9 \(its last batch of an epoch is 1 of 46 examples\)"):
        check_batch_sizes(task, [8, 9])
