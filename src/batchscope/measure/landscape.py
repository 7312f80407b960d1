"""What does the loss look like between two minima, and around one? Lines and slices of f.

    straight   (1 - alpha) a + alpha b                                     Keskar et al. 2016, section 2.2.1
    curved     cos(alpha pi / 2) a + sin(alpha pi / 2) b                   the same, appendix D
    slice      x + alpha d, or x + alpha d + beta e, with random directions, normalised by filter: Li et al. 2018

A filter is a row of a weight along its first dimension, of all weights that have two dimensions or more: a neuron's
incoming weights, a channel's kernels. Each filter of d has the norm of the same filter of x, so that one unit means
the same relative change in every layer and in every network, whatever its scale. Biases and the parameters of
normalisation layers stay where they are.

Every place is measured alike: f's own chunks and mode, for both data sets (batch norm by each chunk's statistics, as
running statistics would be stale everywhere but at the ends). What is not finite there stays so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from batchscope.errors import CannotAnswer
from batchscope.measure.full_loss import FullLoss
from batchscope.records import Line, Slice
from batchscope.training.seeding import mix

LINE = tuple((k - 8) / 8 for k in range(25))  # -1 to 2, 0 and 1 among them: 25 places as in Keskar et al.'s own code
AROUND = tuple((k - 12) / 12 for k in range(25))  # -1 to 1
PLANE_EXAMPLES = 2048  # that a plane's many losses are the mean over (a guess)
GRID = tuple((k - 5) / 5 for k in range(11))  # 11 x 11 (a guess: a coarse picture for 121 passes)

Path = Callable[[float], torch.Tensor]


def line(
    train: FullLoss,
    valid: FullLoss,
    a: torch.Tensor,
    b: torch.Tensor,
    kind: str = "straight",
    places: Sequence[float] = LINE,
    *,
    labels: tuple[str, str] = ("", ""),
) -> Line:
    """Loss and metrics of both data sets from a (at 0) to b (at 1), and beyond; a, b: (n,).

    `kind`: "straight" or "curved"; ValueError for another.
    """
    paths: dict[str, Path] = {
        "straight": lambda place: (1 - place) * a + place * b,
        "curved": lambda place: math.cos(place * math.pi / 2) * a + math.sin(place * math.pi / 2) * b,
    }
    if kind not in paths:
        raise ValueError(f"expected a line that is straight or curved, got {kind!r}")
    return _along(train, valid, paths[kind], kind, places, labels)


def filter_normalised(loss: FullLoss, x: torch.Tensor, seed: int) -> torch.Tensor:
    """(n,) float64: a random direction whose filters have the norms of those of x (n,).

    Raises CannotAnswer for a model in which no weight has two dimensions.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(loss.size, generator=generator, dtype=torch.float64).to(x)
    scaled = [_scaled(d, w) for d, w in zip(loss.parts(drawn), loss.parts(x), strict=True)]
    if all(w.dim() < 2 for w in scaled):
        raise CannotAnswer(
            f"task {loss.task.name!r}: expected weights with two dimensions or more, got none: without filters there "
            "is no filter-normalised direction"
        )
    return torch.cat([d.reshape(-1) for d in scaled])


def _scaled(d: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """d with the norms of w's filters; 0 for a parameter that has none."""
    if w.dim() < 2:
        return torch.zeros_like(w)
    rows, wanted = d.flatten(1), torch.linalg.vector_norm(w.flatten(1), dim=1)
    lengths = torch.linalg.vector_norm(rows, dim=1).clamp_min(torch.finfo(d.dtype).tiny)
    return (rows * (wanted / lengths)[:, None]).view_as(w)


def slice_1d(
    train: FullLoss,
    valid: FullLoss,
    x: torch.Tensor,
    *,
    seed: int = 0,
    places: Sequence[float] = AROUND,
    label: str = "",
) -> Line:
    """Loss and metrics of both data sets along one filter-normalised direction through x (n,)."""
    direction = filter_normalised(train, x, mix(seed, 0))
    return _along(train, valid, lambda place: x + place * direction, "slice", places, (label,))


def slice_2d(
    loss: FullLoss, x: torch.Tensor, *, seed: int = 0, places: Sequence[float] = GRID, label: str = ""
) -> Slice:
    """The loss on a grid around x (n,); the first direction is that of `slice_1d` with the same seed."""
    one, other = (filter_normalised(loss, x, mix(seed, k)) for k in range(2))
    losses = tuple(tuple(loss.value(x + a * one + b * other) for b in places) for a in places)
    return Slice(label, tuple(places), losses)


def pictures(
    train: FullLoss,
    valid: FullLoss,
    points: Sequence[torch.Tensor],
    labels: Sequence[str],
    *,
    planes: bool = True,
    seed: int = 0,
    begin: Callable[[str], None] = lambda what: None,
) -> tuple[list[Line], list[Slice], list[str]]:
    """(lines, slices, notes): both lines between two points, then a slice through each, and the planes around them.

    Planes are over PLANE_EXAMPLES of the examples. A model without filters has no slices: a note says so. `begin` hears
    what comes next.
    """
    lines, slices, notes = [], [], []
    if len(points) == 2:
        a, b = points
        for kind in ("straight", "curved"):
            begin(f"{kind} line")
            lines.append(line(train, valid, a, b, kind, labels=(labels[0], labels[1])))
    try:
        for x, label in zip(points, labels, strict=True):
            begin("slice")
            lines.append(slice_1d(train, valid, x, label=label, seed=seed))
            if planes:
                begin("plane")
                slices.append(slice_2d(train.on(PLANE_EXAMPLES), x, label=label, seed=seed))
    except CannotAnswer as error:
        notes.append(str(error))
    return lines, slices, notes


def _along(
    train: FullLoss, valid: FullLoss, path: Path, kind: str, places: Sequence[float], labels: tuple[str, ...]
) -> Line:
    """Everything at each place in turn."""
    found = [(train.metrics(point), valid.metrics(point)) for point in map(path, places)]
    on_train, on_valid = zip(*found, strict=True)
    return Line(kind, labels, tuple(places), _columns(on_train), _columns(on_valid))


def _columns(rows: Sequence[dict[str, float]]) -> dict[str, tuple[float, ...]]:
    return {name: tuple(row.get(name, math.nan) for row in rows) for name in rows[0]}
