"""Do branches train as a hand-written loop would, reach the expected losses, and leave no trace?"""

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
from torch import nn
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from batchscope.analysis.branching import final_loss
from batchscope.errors import CannotAnswer, UnsupportedTask, UsageError
from batchscope.measure import branching
from batchscope.measure.branching import branches, scaling_rule
from batchscope.records.branching import Branch, BranchAnswer
from batchscope.tasks import noisy_quadratic as q
from batchscope.tasks.noisy_quadratic_truth import Instance, batch_lengths, expected_loss
from toys import Augmented, examples, mlp, mlp_with_state

BASE, WINDOW = 4, 64
DATA = examples(64)


def loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def checkpoint(make: Any = mlp, kind: Any = torch.optim.Adam, lr: float = 0.01) -> tuple[nn.Module, Any]:
    """A model a few steps into its training."""
    torch.manual_seed(0)
    model = make()
    optimizer = kind(model.parameters(), lr=lr)
    for _ in range(3):
        optimizer.zero_grad()
        loss(model, DATA).backward()
        optimizer.step()
    return model, optimizer


def asked(model: nn.Module, optimizer: Any, batches: Any = DATA, **changes: Any) -> BranchAnswer:
    fields: dict[str, Any] = {"batch_size": BASE, "window": WINDOW, "ks": (1, 2), "seeds": (0, 1)} | changes
    return branches(model, optimizer, batches, fields.pop("loss", loss), **fields)


def in_order(batch_size: int, seed: int) -> Iterator[Any]:
    """The data in an order of the seed's, for ever."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(DATA[0]), generator=generator)
        yield from ((DATA[0][i], DATA[1][i]) for i in order.split(batch_size))


# --- the training itself ---


@pytest.mark.parametrize(("kind", "factor"), [(torch.optim.Adam, math.sqrt(2)), (torch.optim.SGD, 2)])
def test_a_branch_is_a_hand_written_loop(kind: Any, factor: float) -> None:
    """The twin trains a copy on whole batches; the branch in micro-batches of the base size."""
    model, optimizer = checkpoint(kind=kind)
    found = asked(model, optimizer, in_order)
    assert [(b.seed, b.k) for b in found.branches] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    for branch in found.branches:
        mine, its = copy.deepcopy((model, optimizer))
        for group in its.param_groups:
            group["lr"] *= {0.0: 0.0, 1.0: 1.0, 2.0: factor}[branch.k]
        for step, batch in enumerate(itertools.islice(in_order(branch.batch_size, branch.seed), len(branch.losses))):
            value = loss(mine, batch)
            assert branch.losses[step] == pytest.approx(float(value.detach()), rel=1e-5)
            its.zero_grad()
            value.backward()
            its.step()
        assert sum(branch.units) == WINDOW
        assert branch.learning_rate == its.param_groups[0]["lr"]


@pytest.mark.parametrize("micro", [1, 3, 8])
def test_accumulation_is_the_whole_batch(micro: int) -> None:
    whole = asked(*checkpoint(kind=torch.optim.SGD), micro_batch_size=1000)
    parts = asked(*checkpoint(kind=torch.optim.SGD), micro_batch_size=micro)
    for a, b in zip(whole.branches, parts.branches, strict=True):
        assert a.losses == pytest.approx(b.losses, rel=1e-5)
        assert a.units == b.units


class Tagger(nn.Module):
    """A class per token."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.table(tokens).transpose(1, 2)


def test_tokens_weigh_by_their_number() -> None:
    """Ragged sequences: the mean over the counted tokens of the batch, not the mean of the micro-batches' means."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 11, (32, 6), generator=generator)
    lengths = torch.randint(0, 7, (32,), generator=generator)
    labels = torch.where(torch.arange(6) < lengths[:, None], tokens % 5, -100)
    assert (lengths == 0).any()  # a pass in which nothing counts
    torch.manual_seed(0)
    model = Tagger()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    ask: dict[str, Any] = {"unit": "tokens", "window": 2 * int(lengths.sum()), "ks": (1, 2), "seeds": (3,)}
    whole = asked(model, optimizer, (tokens, labels), micro_batch_size=100, **ask)
    parts = asked(model, optimizer, (tokens, labels), micro_batch_size=1, **ask)
    ask["count"] = lambda batch: int((batch[-1] >= 0).sum())
    counted = asked(model, optimizer, (tokens, labels), micro_batch_size=100, **ask)
    assert whole.branches == counted.branches
    del ask["count"]
    for a, b in zip(whole.branches, parts.branches, strict=True):
        assert a.losses == pytest.approx(b.losses, rel=1e-5)
        assert a.units == b.units
        assert sum(a.units) >= 2 * lengths.sum()
    assert whole.unit == "tokens"
    mapped = DataLoader(
        TensorDataset(tokens, labels),
        batch_size=BASE,
        collate_fn=lambda items: {
            "labels": torch.stack([y for _, y in items]),
            "x": torch.stack([x for x, _ in items]),
        },
    )
    by_name = asked(
        model, optimizer, mapped, loss=lambda m, b: F.cross_entropy(m(b["x"]), b["labels"]), micro_batch_size=100, **ask
    )
    assert by_name.branches == counted.branches


def test_gradients_are_clipped_where_the_training_clips() -> None:
    model, optimizer = checkpoint(kind=torch.optim.SGD, lr=1.0)
    moved: list[float] = []
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()

    def watched(model: nn.Module, batch: Any) -> torch.Tensor:
        moved.append(float((nn.utils.parameters_to_vector(model.parameters()).detach() - before).norm()))
        return loss(model, batch)

    asked(model, optimizer, loss=watched, clip_norm=1e-3, seeds=(0,), ks=(1, 2), rule="sqrt")
    assert moved[:16] == [0.0] * 16  # the checkpoint itself
    assert moved[17] == pytest.approx(1e-3, rel=1e-3)
    assert max(moved[16:32]) <= 0.0151


def test_rules_follow_the_optimiser() -> None:
    weights = [nn.Parameter(torch.zeros(2))]
    kinds = {
        torch.optim.AdamW: "sqrt",
        torch.optim.RMSprop: "sqrt",
        torch.optim.Adagrad: "sqrt",
        torch.optim.SGD: "linear",
    }
    for kind, rule in kinds.items():
        assert scaling_rule(kind(weights, lr=0.1)) == rule
    model, optimizer = checkpoint()
    assert [p.learning_rate for p in asked(model, optimizer, rule="linear").points] == [0.01, 0.02]
    assert asked(model, optimizer).rule == "sqrt"


# --- the truth ---


def exact_losses(instance: Instance, batch_size: int, learning_rate: float) -> np.ndarray:
    """E of each batch's loss over one permutation: E f(w_t) + sum Cov(w_t, xb_t), see `noisy_quadratic_truth`."""
    lengths = batch_lengths(instance.train_size, batch_size)
    a, g, found = 1 - learning_rate * instance.curvature, np.zeros_like(instance.curvature), []
    losses = expected_loss(instance, batch_size, learning_rate, len(lengths) - 1)
    for value in losses:
        found.append(value + learning_rate * float(instance.noise_variance @ g) / (instance.train_size - 1))
        g = 1 + a * g
    return np.array(found)


def exact_k_star(finals: dict[float, float], tolerance: float) -> float:
    return max(k for k in finals if all(finals[k] <= finals[j] + tolerance for j in finals if j < k))


def test_losses_and_k_star_are_those_expected() -> None:
    """On the noisy quadratic the expected loss of every branch is known, and with it k*."""
    torch.manual_seed(0)
    model = q.Quadratic()
    rows = q.noise_rows()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
    generator = torch.Generator().manual_seed(1)
    for _ in range(300):
        optimizer.zero_grad()
        model(rows[torch.randint(0, q.TRAIN, (32,), generator=generator)]).mean().backward()
        optimizer.step()
    found = branches(
        model,
        optimizer,
        (rows,),
        lambda model, batch: model(batch[0]).mean(),
        batch_size=32,
        window=q.TRAIN,
        tolerance=0.005,
        seeds=range(5),
        micro_batch_size=256,
    )
    start = model.w.detach().double().abs().numpy()
    instance = Instance(q.curvature().numpy(), start, q.noise_variance().numpy(), q.TRAIN)
    finals = {}
    for k in (0.5, 1.0, 2.0, 4.0):
        size = int(32 * k)
        steps = exact_losses(instance, size, 0.4 * k)
        exact = Branch(k, 0, size, 0.4 * k, tuple(steps), (float(size),) * len(steps))
        finals[k] = final_loss(exact, q.TRAIN, found.smoothing)
    for point in found.points[:4]:
        own = [final_loss(b, q.TRAIN, found.smoothing) for b in found.branches if b.k == point.k]
        excess = point.excess
        assert point.loss.estimate is not None
        assert excess.estimate is not None
        assert abs(point.loss.estimate - finals[point.k]) < 4 * np.std(own, ddof=1) / math.sqrt(len(own))
        if point.k != 1:
            assert excess.low is not None
            assert excess.high is not None
            assert excess.low <= finals[point.k] - finals[1.0] <= excess.high
            assert excess.high - excess.low < 0.008
    stays = float(instance.loss(start))  # of the whole permutation the batches' mean is exactly f
    assert all(np.mean(b.losses) == pytest.approx(stays, abs=1e-5) for b in found.branches if b.k == 0)
    own = [final_loss(b, q.TRAIN, found.smoothing) for b in found.branches if b.k == 0]
    assert found.learned.estimate is not None
    assert abs(found.learned.estimate - (stays - finals[1.0])) < 4 * np.std(own, ddof=1) / math.sqrt(len(own))
    assert found.points[4].diverged  # 1 - eta h = -2.2 in the steepest direction
    b = found.recovered_up_to
    assert found.outcome == "bracketed"
    assert exact_k_star(finals, 0.005) == 2.0
    assert (b.low, b.estimate, b.high) == (64, 64, 128)
    assert found.steps_saved.estimate == 0.5


def test_divergence_ends_a_branch_and_not_the_answer() -> None:
    model = nn.Linear(5, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=2e3)
    found = asked(
        model,
        optimizer,
        loss=lambda m, b: m(b[0]).square().mean() * (1 if m.weight.detach().abs().max() < 1e6 else math.inf),
        ks=(0.5, 1),
    )
    assert all(p.diverged and p.recovered == "no" for p in found.points)
    assert all(math.isfinite(x) for b in found.branches for x in b.losses)
    assert "The base itself (k = 1) diverged" in found.notes[-1]


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
