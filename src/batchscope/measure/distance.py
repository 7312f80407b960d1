"""How far from the initial weights, and in which layers? |w - w0|, in float64, over the trainable parameters.

    total^2 = sum over the parameters of |w_l - w0_l|^2

x and x0 (n,) are points of a `FullLoss`: a tied weight is in them once, under its first name; frozen parameters and
buffers, batch norm's running statistics among them, are not. From the three norms of a layer follows the angle as
well, which is what counts where a normalisation behind the layer makes its scale irrelevant:
cos = (|w|^2 + |w0|^2 - |w - w0|^2) / (2 |w| |w0|).
"""

from __future__ import annotations

import torch

from batchscope.measure.full_loss import FullLoss
from batchscope.records import LayerDistance


def layer_distances(loss: FullLoss, x: torch.Tensor, x0: torch.Tensor) -> tuple[LayerDistance, ...]:
    """One for each parameter tensor of f, in the model's order; x and x0: (n,).

    Raises ValueError where a point is not one of this f.
    """
    _check(loss.size, x, x0)
    parts = zip(loss.names, loss.parts(x.double()), loss.parts(x0.double()), strict=True)
    return tuple(LayerDistance(name, _norm(w - w0), _norm(w0), _norm(w)) for name, w, w0 in parts)


def total_distance(x: torch.Tensor, x0: torch.Tensor) -> float:
    """|x - x0|."""
    _check(len(x), x, x0)
    return _norm(x.double() - x0.double())


def _norm(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor))


def _check(size: int, *points: torch.Tensor) -> None:
    for point in points:
        if point.shape != (size,):
            raise ValueError(
                f"expected a point of {size} trainable parameters, got one of shape {tuple(point.shape)}: give points "
                "of the same model"
            )
