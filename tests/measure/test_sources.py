"""Is the right source chosen, and do all of them give the same noise scale on the same weights?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from naive_gradients import BATCH, DATA, data_set, estimates, exact, mean_and_error, measured
from torch import nn

from batchscope.errors import UnsupportedTask, UsageError
from batchscope.measure.accumulated import MicroBatches
from batchscope.measure.gradients import Source
from batchscope.measure.halves import Halves
from batchscope.measure.per_example import PerExample
from batchscope.measure.proxies import proxies_of
from batchscope.measure.sources import Candidates, data_parallel_group, unwrapped

STEPS = 200


def estimated(kind: Callable[[nn.Module], Source], pieces: int, seed: int) -> torch.Tensor:
    """(STEPS, 2): (tr(Sigma), |G|^2) of random batches, each cut into so many micro-batches."""
    model, x, y = data_set()
    source, generator, readings = kind(model), torch.Generator().manual_seed(seed), []
    for _ in range(STEPS):
        parts: Sequence[torch.Tensor] = torch.randperm(DATA, generator=generator)[:BATCH].chunk(pieces)

        def step(parts: Sequence[torch.Tensor] = parts) -> None:
            for rows in parts:
                (F.cross_entropy(model(x[rows]), y[rows]) / len(parts)).backward()

        readings += measured(source, step, times=1)
    return estimates(readings)


def test_all_sources_agree_on_the_same_weights() -> None:
    """Averages within three standard errors of the exact values, and of each other. Replicas: `test_replicas.py`."""
    truth = torch.tensor(exact(*data_set()), dtype=torch.float64)
    kinds: list[tuple[Callable[[nn.Module], Source], int]] = [(PerExample, 1), (MicroBatches, 3), (Halves, 1)]
    means, errors = zip(*[mean_and_error(estimated(*kind, seed)) for seed, kind in enumerate(kinds)], strict=True)
    for mean, error in zip(means, errors, strict=True):
        assert bool(((mean - truth).abs() < 3 * error).all())
        assert bool((error < 0.15 * truth.max()).all())
    for i in range(len(kinds)):
        together = (errors[i].square() + errors[i - 1].square()).sqrt()
        assert bool(((means[i] - means[i - 1]).abs() < 3 * together).all())
    assert float(errors[0][0]) < float(errors[1][0]) < float(errors[2][0])  # the more parts, the more precise


# --- which one ---


class Beside(nn.Module):
    """A parameter of its own beside layers."""

    def __init__(self) -> None:
        super().__init__()
        self.prefix, self.head = nn.Parameter(torch.ones(4)), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x * self.prefix)


def mlp(*more: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), *more)


def proxies(model: nn.Module) -> Any:
    return proxies_of(torch.optim.SGD(model.parameters(), lr=0.1), list(model.parameters()))


@pytest.mark.parametrize(
    ("model", "passes", "kind", "refused"),
    [
        (mlp(), 1, PerExample, {}),
        (mlp(), 2, MicroBatches, {}),
        (mlp(nn.BatchNorm1d(3)), 1, Halves, {"examples": "batch norm (1) mixes the examples of a batch"}),
        (mlp(nn.BatchNorm1d(3)).eval(), 1, PerExample, {}),
        (mlp(nn.BatchNorm1d(3)), 4, MicroBatches, {}),
        (Beside(), 1, Halves, {"examples": "parameter prefix: Beside uses it beside other layers"}),
    ],
)
def test_the_cheapest_that_works(model: nn.Module, passes: int, kind: type, refused: dict[str, str]) -> None:
    candidates = Candidates(model, None, None, None)
    assert type(candidates.first(passes)) is kind
    assert candidates.refused == refused


def test_the_one_asked_for() -> None:
    for name, kind in (("examples", PerExample), ("parts", Halves), ("micro-batches", MicroBatches)):
        for passes in (1, 2):
            assert type(Candidates(mlp(), None, name, None).first(passes)) is kind
    with pytest.raises(UnsupportedTask, match="per-example gradients are not to be had: batch norm"):
        Candidates(mlp(nn.BatchNorm1d(3)), None, "examples", None).first(1)
    candidates = Candidates(Beside(), None, "examples", None)
    assert candidates.after(candidates.first(1)) is None  # it shows nothing, and says why
    assert "prefix" in candidates.refused["examples"]


def test_proxies_take_the_parts() -> None:
    model = mlp()
    assert type(Candidates(model, None, None, proxies(model)).first(1)) is Halves
    candidates = Candidates(model, None, None, proxies(model))
    assert type(candidates.first(2)) is MicroBatches
    assert "proxies" in candidates.refused["parts"]
    for group, name in ((None, "examples"), (None, "micro-batches"), (object(), None)):
        with pytest.raises(UsageError, match="for proxies"):
            Candidates(model, group, name, proxies(model))


def test_names_that_do_not_fit() -> None:
    for group, name in ((None, "layers"), (None, "replicas"), (object(), "parts")):
        with pytest.raises(UsageError, match="leave it out"):
            Candidates(mlp(), group, name, None)


def test_what_follows_a_source_that_shows_nothing() -> None:
    candidates = Candidates(mlp(), None, None, None)
    first = candidates.first(1)
    assert isinstance(first, PerExample)
    assert candidates.after(first) is first  # a batch of one, say
    first.uncovered = {"0.weight": "why", "0.bias": "why"}
    following = candidates.after(first)
    assert isinstance(following, Halves)
    assert candidates.refused == {"examples": "parameter 0.weight: why, and 1 more"}
    following.why_not = "one example a step"
    assert candidates.after(following) is following
    following.why_not, following.lasting = "no single output", True
    assert candidates.after(following) is None
    assert candidates.refused["parts"] == "no single output"
    chosen = Candidates(mlp(), None, "examples", None)
    source = chosen.first(1)
    assert isinstance(source, PerExample)
    source.uncovered = {"0.weight": "why"}
    assert chosen.after(source) is None


# --- models that are wrapped ---


def test_models_that_cannot_be_measured() -> None:
    frozen = mlp().requires_grad_(False)
    with pytest.raises(UsageError, match="trainable parameters"):
        unwrapped(frozen)
    sharded = mlp()
    vars(next(sharded.parameters()))["_is_sharded"] = True
    with pytest.raises(UnsupportedTask, match="sharded"):
        unwrapped(sharded)

    class DTensor(nn.Parameter):
        pass

    class FullyShardedDataParallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

    distributed = nn.Module()
    distributed.weight = DTensor(torch.ones(2))
    for model in (distributed, FullyShardedDataParallel()):
        with pytest.raises(UnsupportedTask, match="sharded"):
            unwrapped(model)


def test_a_single_process_has_no_group() -> None:
    model = mlp()
    assert unwrapped(model) is model
    assert data_parallel_group(model) is None
