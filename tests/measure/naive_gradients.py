"""What are the squared norms that sources claim to measure? One example, or part, at a time, in double precision."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from batchscope.analysis.noise_scale import draw
from batchscope.measure.gradients import Counts, Reading, Source
from batchscope.records import GradientNorms

Loss = Callable[[nn.Module, Any, Any], torch.Tensor]  # of a model on inputs and targets: a mean over the examples
Parts = Sequence[tuple[Any, Any]]
CLOSE = 2e-4  # float32 against double precision, where sums cancel; a wrong formula is off by 1


def twin(model: nn.Module) -> nn.Module:
    """The same model in double precision; a tied weight stays tied."""
    return copy.deepcopy(model).double()


def wide(value: Any) -> Any:
    """Inputs in double precision; whole numbers, and tensors in tuples, too."""
    if isinstance(value, tuple):
        return tuple(wide(v) for v in value)
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def gradient(model: nn.Module, value: torch.Tensor) -> list[torch.Tensor]:
    """Of every trainable parameter; 0 for an unused one."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g.to_dense() for p, g in zip(parameters, found, strict=True)]


def squares(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """(P,): squared norms."""
    return torch.stack([g.square().sum() for g in gradients])


def naive(
    model: nn.Module, loss: Loss, parts: Parts, weights: Sequence[float] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(P,) each: sum_i w_i^2 |g_i|^2 / sum_i w_i^2 and |sum_i w_i g_i|^2; equal weights by default."""
    model, shares = twin(model), weights or [1 / len(parts)] * len(parts)
    found = [gradient(model, loss(model, wide(x), wide(y))) for x, y in parts]
    mean = [sum(w * g for w, g in zip(shares, each, strict=True)) for each in zip(*found, strict=True)]
    together = sum(w * w for w in shares)
    weighed = [w * w / together * squares(g) for w, g in zip(shares, found, strict=True)]
    return torch.stack(weighed).sum(0), squares(mean)


def examples(x: torch.Tensor, y: torch.Tensor) -> Parts:
    """A batch as batches of one."""
    return [(x[i : i + 1], y[i : i + 1]) for i in range(len(x))]


def halves(x: torch.Tensor, y: torch.Tensor) -> Parts:
    """A batch in two; the second half has one more where it is odd."""
    return [(x[: len(x) // 2], y[: len(y) // 2]), (x[len(x) // 2 :], y[len(y) // 2 :])]


def measured(source: Source, step: Callable[[], None], times: int = 2, counts: Counts = None) -> list[Reading | None]:
    """What a source reads at the same weights, so many times: the first time checks, the others do not."""
    found = []
    for _ in range(times):
        source.model.zero_grad()
        source.arm()
        step()
        found.append(source.read(counts))
    return found


def agree(reading: Reading | None, expected: tuple[torch.Tensor, torch.Tensor], rtol: float = CLOSE) -> None:
    """Asserts that both squared norms of every parameter are as expected, within rounding of the largest."""
    assert reading is not None
    for found, wanted in zip((reading.parts_squared, reading.mean_squared), expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=rtol, atol=rtol * 1e-3 * float(wanted.max()))


def sized(reading: Reading | None) -> tuple[int, float, float]:
    """(parts, part size, batch size)."""
    assert reading is not None
    return reading.parts, float(reading.part_size), float(reading.batch_size)


# --- a fixed data set, at fixed weights ---

DATA, BATCH = 48, 12


def data_set() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A small model and all its examples: noisy classes."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    return model, torch.randn(DATA, 4, generator=generator), torch.randint(0, 3, (DATA,), generator=generator)


def exact(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """(tr(Sigma), |G|^2) over all examples: the mean squared norm less |G|^2."""
    every, mean = naive(model, lambda model, x, y: nn.functional.cross_entropy(model(x), y), examples(x, y))
    return float(every.sum() - mean.sum()), float(mean.sum())


def estimates(readings: Sequence[Reading | None]) -> torch.Tensor:
    """(K, 2): each reading's unbiased (tr(Sigma), |G|^2), batches drawn without replacement from the data set."""
    return torch.tensor([draw(norms_of(reading), DATA) for reading in readings], dtype=torch.float64)


def norms_of(reading: Reading | None) -> GradientNorms:
    assert reading is not None
    return GradientNorms(
        step=0,
        examples=0,
        parts=reading.parts,
        part_size=float(reading.part_size),
        batch_size=float(reading.batch_size),
        mean_squared=float(reading.mean_squared.sum()),
        parts_squared=float(reading.parts_squared.sum()),
    )


def mean_and_error(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Means over measurements, and their standard errors."""
    return values.mean(0), values.std(0) / len(values) ** 0.5
