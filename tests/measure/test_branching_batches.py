"""Do branches leave no trace, take batches from anywhere, and refuse what they cannot use?"""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from branch_models import BASE, DATA, asked, checkpoint, in_order, loss
from torch import nn
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from batchscope.errors import CannotAnswer, UnsupportedTask, UsageError
from batchscope.measure import branching
from toys import Augmented, mlp, mlp_with_state

# --- nothing is changed ---


class Stateful(nn.Module):
    """All that a module may remember: buffers, one replaced at each step, one not saved, and a state of its own."""

    mean: torch.Tensor
    count: torch.Tensor
    hidden: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp_with_state()
        self.register_buffer("mean", torch.zeros(5))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("hidden", torch.ones(2), persistent=False)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.mean += x.mean(0)
        self.count = self.count + 1
        self.hidden *= 1.1
        self.calls += 1
        return self.layers(x)

    def get_extra_state(self) -> int:
        return self.calls

    def set_extra_state(self, state: int) -> None:
        self.calls = state


def everything(model: Any, optimizer: Any) -> dict[str, Any]:
    """Values, and the objects that hold them."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    states = {f"{i} {n}": v for i, s in enumerate(optimizer.state.values()) for n, v in s.items()}
    return {
        "values": copy.deepcopy({n: t.detach() for n, t in {**tensors, **states}.items()}),
        "gradients": [(id(p.grad), copy.deepcopy(p.grad)) for p in model.parameters()],
        "objects": [id(t) for t in (*tensors.values(), *states.values())],
        "groups": [{n: v for n, v in g.items() if n != "params"} for g in optimizer.param_groups],
        "modes": [m.training for m in model.modules()],
        "calls": model.calls,
        "draws": (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state(legacy=False)),
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[n], b[n]) for n in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_everything_is_as_it_was(kind: Any, fails: bool) -> None:
    model, optimizer = checkpoint(make=Stateful, kind=kind)
    model.get_submodule("layers.1").eval()  # frozen batch norm
    optimizer.param_groups[0]["lr"] = 0.02
    loss(model, DATA).backward()
    before, passes = everything(model, optimizer), 0

    def watched(model: nn.Module, batch: Any) -> torch.Tensor:
        nonlocal passes
        passes += 1
        if fails and passes == 150:
            raise KeyError("the user's own")
        np.random.rand()
        assert [m.training for m in model.modules()] == before["modes"]
        return loss(model, batch) + 0.0 * random.random()

    if fails:
        with pytest.raises(KeyError, match="the user's own"):
            asked(model, optimizer, loss=watched, ks=(1, 2, 4), window=256)
    else:
        asked(model, optimizer, loss=watched, ks=(1, 2, 4), window=256)
    assert same(everything(model, optimizer), before)


def test_a_fresh_optimiser_stays_fresh_and_a_model_in_eval_mode_trains() -> None:
    torch.manual_seed(0)
    model = mlp_with_state().eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    found = asked(model, optimizer, loss=lambda m, b: loss(m, b) if m.training else loss(m, b) * math.nan)
    assert not any(b.diverged for b in found.branches)
    assert not optimizer.state
    assert not any(m.training for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_every_branch_begins_alike_and_twice_is_the_same() -> None:
    """Dropout draws the same for every k, and the first batches of all k begin with the same examples."""
    model, optimizer = checkpoint(make=mlp_with_state)
    one, two = asked(model, optimizer), asked(model, optimizer)
    assert one == two
    assert len({b.losses for b in one.branches}) == 6
    for seed in (0, 1):  # before the first step, the batch that k = 1 shares with the checkpoint has one loss
        assert len({b.losses[0] for b in one.branches if b.seed == seed and b.k < 2}) == 1
    assert any("Batch norm (1) sees passes of at most 4 examples" in note for note in one.notes)


# --- where the batches come from ---


class Indexed(Augmented):
    """Items tell which example they are, and what they drew at random."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, _ = super().__getitem__(index)
        return torch.cat([torch.tensor([float(index)]), x]), torch.tensor(0)


def test_a_loader_alone_is_enough() -> None:
    """Its data set and collate function; the same examples, drawn alike, in the same order for every k."""
    loader = DataLoader(
        Indexed(), batch_size=9, shuffle=True, collate_fn=lambda items: [torch.stack([x for x, _ in items])]
    )
    seen: dict[float, list[torch.Tensor]] = {}
    model = nn.Linear(6, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def watched(model: nn.Module, batch: Any) -> torch.Tensor:
        seen.setdefault(float(optimizer.param_groups[0]["lr"]), []).append(batch[0].clone())
        return model(batch[0]).square().mean()

    asked(model, optimizer, loader, loss=watched, ks=(0.5, 1, 2), seeds=(5,), window=96)
    streams = [torch.cat(batches) for batches in seen.values()]
    assert [len(s) for s in streams] == [96, 96, 96, 96]
    assert all(torch.equal(s, streams[0]) for s in streams)
    assert sorted(streams[0][:46, 0].tolist()) == list(range(46))  # an epoch is a permutation
    assert sorted(streams[0][46:92, 0].tolist()) == list(range(46))
    assert streams[0][:46, 0].tolist() != streams[0][46:92, 0].tolist()


def test_data_sets_loaders_and_tensors_agree() -> None:
    model, optimizer = checkpoint()
    data = TensorDataset(*DATA)
    answers = [asked(model, optimizer, d) for d in (DATA, data, DataLoader(data, batch_size=7, shuffle=True))]
    assert answers[0] == answers[1] == answers[2]


class Endless(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        return itertools.count()


REFUSED = [
    (DataLoader(Endless(), batch_size=2), "map-style Dataset, got Endless, which is iterable"),
    (DataLoader(TensorDataset(*DATA), sampler=SubsetRandomSampler([1, 2])), "SubsetRandomSampler: write batches="),
    (DataLoader(TensorDataset(*DATA), sampler=WeightedRandomSampler([1.0] * 64, 64)), "WeightedRandomSampler"),
    (DataLoader(TensorDataset(*DATA), batch_sampler=[[0, 1]]), "got one with list"),
]


@pytest.mark.parametrize(("batches", "why"), REFUSED)
def test_loaders_of_other_examples_are_refused(batches: Any, why: str) -> None:
    with pytest.raises(UnsupportedTask, match=why):
        asked(*checkpoint(), batches)


MALFORMED = [
    ({"batch_size": 0}, "batch_size in examples from 1 up"),
    ({"ks": (1,)}, "got k = 1 alone"),
    ({"ks": (0.3,)}, "got k = 0.3 at batch_size=4"),
    ({"ks": (-1, 2)}, "got k = -1"),
    ({"ks": (64,), "window": 10_000}, "at most the 64 examples of the data, got 256"),
    ({"window": 40}, "a window of 8 steps of the largest branch, got 40: write window=64"),
    ({"unit": "words"}, 'unit "examples" or "tokens", got \'words\''),
    ({"unit": "tokens", "batches": (DATA[0],)}, "to count tokens by"),
    ({"rule": "cubic"}, "a rule of sqrt, linear"),
    ({"tolerance": math.nan}, "a positive tolerance"),
    ({"seeds": (1, 1)}, "different seeds"),
    ({"micro_batch_size": 0}, "micro_batch_size from 1 up"),
    ({"clip_norm": 0.0}, "a positive clip_norm"),
    ({"loss": lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none")}, r"a tensor of shape \(4,\)"),
    ({"loss": lambda m, b: 1.0}, "got float: return the mean loss"),
    ({"count": lambda b: 0}, "units that the loss averages over, got 0"),
    ({"batches": 7}, "a DataLoader, a Dataset or a function, got int"),
    ({"batches": lambda size, seed: in_order(BASE, seed)}, "batches of the 8 examples asked for, got 4"),
    ({"batches": lambda size, seed: in_order(size, 0)}, "the same losses for seeds 0 and 1"),
]


@pytest.mark.parametrize(("changes", "why"), MALFORMED)
def test_malformed_calls_are_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        asked(*checkpoint(), **changes)


def test_what_cannot_branch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = checkpoint()
    with pytest.raises(UnsupportedTask, match="LBFGS"):
        asked(model, torch.optim.LBFGS(model.parameters()))
    with pytest.raises(UsageError, match="another model's"):
        asked(mlp(), optimizer)
    with pytest.raises(CannotAnswer, match="got 16 at batch size 4"):
        asked(model, optimizer, lambda size, seed: itertools.islice(in_order(size, seed), 4))
    monkeypatch.setattr(branching, "data_parallel_group", lambda model: object())
    with pytest.raises(UnsupportedTask, match="one process"):
        asked(model, optimizer)


def test_out_of_memory_says_what_to_write() -> None:
    model, optimizer = checkpoint()

    def too_large(model: nn.Module, batch: Any) -> torch.Tensor:
        if len(batch[0]) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return loss(model, batch)

    with pytest.raises(CannotAnswer, match="write micro_batch_size=2"):
        asked(model, optimizer, loss=too_large)
    assert asked(model, optimizer, loss=too_large, micro_batch_size=2).micro_batch_size == 2
