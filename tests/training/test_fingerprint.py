"""The fingerprint changes with what a task does, names the part, and with nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler as schedules
from torch.utils.data import Dataset, TensorDataset

from batchscope.records import Goal
from batchscope.training import fingerprint as module
from batchscope.training.fingerprint import changed, fingerprint
from toys import Augmented, accuracy, examples, mlp, mlp_with_state, sgd, toy

X, Y = examples(46)


def one_byte(tensor):
    """A copy that differs in the lowest bit of its last byte."""
    copy = tensor.clone()
    copy.view(torch.uint8).view(-1)[-1] ^= 1
    return copy


def zeroed():
    model = mlp()
    nn.init.zeros_(model[2].bias)
    return model


def half_frozen():
    model = mlp()
    model[0].requires_grad_(False)
    return model


def with_dropout(p):
    return lambda: nn.Sequential(nn.Linear(5, 8), nn.Dropout(p), nn.Linear(8, 3))


def optimizer(kind, **settings):
    return lambda model, lr: kind(model.parameters(), lr=lr, **settings)


def scheduled(kind, *arguments, **settings):
    return {"schedule": lambda o, n: kind(o, *arguments, **settings)}


SGD, ADAM = torch.optim.SGD, torch.optim.Adam
MODEL, DATA, OPTIMIZER, SCHEDULE = "model, loss or metrics", "the data", "the optimizer", "the schedule"


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ({}, {"model": lambda: nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 3))}, "the model's parameters"),
        ({}, {"model": half_frozen}, "the model's parameters"),
        ({"model": mlp}, {"model": zeroed}, MODEL),
        ({"model": with_dropout(0.0)}, {"model": with_dropout(0.1)}, MODEL),
        ({"model": with_dropout(0.2)}, {"model": with_dropout(0.3)}, MODEL),
        ({}, {"loss": lambda output, target: F.cross_entropy(output, target, label_smoothing=0.01)}, MODEL),
        ({}, {"metrics": {"accuracy": lambda output, target: 1 - accuracy(output, target)}}, MODEL),
        ({}, {"metrics": {"precision": accuracy}}, "the goal"),
        ({}, {"train": (one_byte(X), Y)}, DATA),
        ({}, {"train": (X, one_byte(Y))}, DATA),
        ({}, {"train": (X[:-1], Y[:-1])}, DATA),
        ({}, {"valid": examples(20, seed=2)}, DATA),
        ({}, {"test": examples(20, seed=2)}, DATA),
        ({"train": TensorDataset(X, Y)}, {"train": TensorDataset(one_byte(X), Y)}, DATA),
        ({"train": Augmented()}, {"train": TensorDataset(X, Y)}, DATA),
        ({"train": Augmented()}, {"train": Augmented(), "collate_fn": lambda items: (X[:8], Y[:8])}, MODEL),
        ({}, {"optimizer": optimizer(SGD, momentum=0.8)}, OPTIMIZER),
        ({}, {"optimizer": optimizer(SGD, momentum=0.9, nesterov=True)}, OPTIMIZER),
        ({}, {"optimizer": optimizer(SGD, momentum=0.9, weight_decay=1e-4)}, OPTIMIZER),
        ({"optimizer": optimizer(ADAM)}, {"optimizer": optimizer(ADAM, betas=(0.9, 0.98))}, OPTIMIZER),
        ({"optimizer": optimizer(ADAM)}, {"optimizer": optimizer(torch.optim.AdamW, weight_decay=0)}, OPTIMIZER),
        ({}, {"clip_norm": 10.0}, OPTIMIZER),
        ({}, scheduled(schedules.StepLR, 30), SCHEDULE),
        (scheduled(schedules.MultiStepLR, [30]), scheduled(schedules.MultiStepLR, [31]), SCHEDULE),
        (scheduled(schedules.MultiStepLR, [5000]), scheduled(schedules.MultiStepLR, [5001]), SCHEDULE),
        (
            scheduled(schedules.LambdaLR, lambda s: 1.0),
            scheduled(schedules.LambdaLR, lambda s: float(s < 900)),
            SCHEDULE,
        ),
        ({}, {"goal": Goal("loss", at_most=0.31)}, "the goal"),
        ({}, {"goal": Goal("accuracy", at_least=0.3)}, "the goal"),
        ({}, {"goal": None}, "the goal"),
        ({}, {"unit": "tokens", "count": lambda batch: len(batch[0])}, "the goal"),
        ({}, {"precision": "bf16"}, "the precision"),
    ],
)
def test_it_changes_with_what_the_task_does_and_names_the_part(old, new, named):
    (first, parts), (second, other) = fingerprint(toy(**old)), fingerprint(toy(**new))
    assert first != second
    assert named in changed(parts, other)
    assert changed(parts, parts) == []


def test_it_does_not_change_with_what_a_trial_or_a_table_decides():
    fields = {"model": mlp_with_state, **scheduled(schedules.StepLR, 30)}
    name, parts = fingerprint(toy(**fields))
    others = {"name": "another", "lr": 7.0, "batch_size": 3, "budget": 99, "targets": (0.2,), "num_workers": 1}
    for field, value in others.items():
        assert fingerprint(toy(**fields, **{field: value})) == (name, parts), field
    torch.rand(5)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert fingerprint(toy(**fields)) == (name, parts)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_new_version_of_torch_or_of_the_loop_changes_it(monkeypatch):
    parts = fingerprint(toy())[1]
    monkeypatch.setattr(module, "LOOP_VERSION", module.LOOP_VERSION + 1)
    assert changed(parts, fingerprint(toy())[1]) == ["the versions"]


class Item:
    """An object of the user's, with a tensor in it."""

    def __init__(self, value):
        self.value, self.name = torch.full((3,), float(value)), "an item"


class Objects(Dataset):
    def __init__(self, offset=0):
        self.offset = offset

    def __len__(self):
        return 46

    def __getitem__(self, index):
        return Item(index + self.offset), {"set": frozenset({index}), "function": len}


def object_task(offset=0):
    """Items that are objects, and an optimiser with a function among its settings."""

    class Odd(torch.optim.SGD):
        def __init__(self, params, lr):
            super().__init__([{"params": list(params), "hook": lambda: 0}], lr=lr)

    def collate(items):
        x = torch.stack([item.value for item, _ in items])
        return F.pad(x, (0, 2)), torch.zeros(len(items), dtype=torch.long)

    data = Objects(offset)
    return toy(train=data, valid=data, collate_fn=collate, optimizer=lambda model, lr: Odd(model.parameters(), lr))


def test_objects_are_hashed_by_what_they_hold():
    assert fingerprint(object_task()) == fingerprint(object_task())
    assert "the data" in changed(fingerprint(object_task())[1], fingerprint(object_task(1))[1])


def test_it_is_the_same_in_another_process():
    """With other addresses, another hash seed and another number of threads."""
    here = Path(__file__).parent
    code = (
        "import torch, test_fingerprint as t; from toys import toy, mlp_with_state, Augmented;"
        "torch.set_num_threads(2);"
        "print(t.fingerprint(t.object_task())[0], t.fingerprint(toy(model=mlp_with_state, train=Augmented()))[0])"
    )
    path = os.pathsep.join([*sys.path, str(here), str(here.parent)])
    environment = os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "77"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    expected = [fingerprint(object_task())[0], fingerprint(toy(model=mlp_with_state, train=Augmented()))[0]]
    assert done.stdout.split() == expected


def test_sparse_gradients_and_tied_weights_have_one():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(6, 4, sparse=True), nn.Linear(4, 6, bias=False)
            self.body = nn.Linear(4, 4)

        def forward(self, x):
            return self.out(self.body(self.embed(x)).mean(1))

    x = torch.randint(6, (20, 3))
    fields = {"train": (x, x[:, 0]), "valid": (x, x[:, 0]), "optimizer": optimizer(SGD)}
    assert len(fingerprint(toy(model=Tied, **fields))[0]) == 16

    def tied():
        model = Tied()
        model.embed = nn.Embedding(6, 4)
        model.out.weight = model.embed.weight
        return model

    assert fingerprint(toy(model=tied, **fields))[0] != fingerprint(toy(model=Tied, **fields))[0]
    assert sgd(tied(), 0.1).param_groups[0]["lr"] == 0.1
