"""What is the noise scale in the metric of an adaptive optimiser? Two proxies, from the gradients of a batch's halves.

B_simple takes the loss for equally curved in all directions. An optimiser that divides by a scale of each coordinate
walks in other coordinates, in which that may be nearer to the truth:

    adam    w' = P^(-1/2) w with P = 1 / (sqrt(v) + eps), v Adam's corrected second moment before this step: gradients
            become P^(1/2) g, and B = tr(P Sigma) / G' P G, by the same arithmetic (AdaptDL divides by P^-1 instead)
    sign    the step depends on signs only: B = (sum_i sigma_i)^2 / (sum_i |G_i|)^2 (Naganuma 2026). A batch's |g_i| is
            longer than |G_i| by its noise, so that this is a lower bound, whatever the number of measurements, where
            many coordinates share the noise (the square of the estimated sum is longer by its own variance: up to
            pi / 2 where all noise is in one direction)

Neither is derived for your loss. `sigma_i` comes from two halves, corrected for n = 2: E|x - y| = 2 sigma / sqrt(pi).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from batchscope.measure.gradients import shape_of

Halves = Sequence[Sequence[torch.Tensor]]
Squared = dict[str, tuple[torch.Tensor, torch.Tensor]]
Proxies = Callable[[Sequence[torch.Tensor], Halves, Sequence[float], Sequence[float]], Squared]


def proxies_of(optimizer: torch.optim.Optimizer, parameters: Sequence[torch.Tensor]) -> Proxies:
    """A function of (batch's gradient, halves' own gradients, weights, sizes): metric -> (parts_squared, mean_squared).

    Before Adam's first step there is no second moment: then there is no "adam". What Adam has not moved yet does not
    count in it.
    """
    settings = {id(p): group for group in optimizer.param_groups for p in group["params"]}

    def scales() -> list[torch.Tensor] | None:
        found, moved = [], False
        for p in parameters:
            state, group = optimizer.state.get(p, {}), settings.get(id(p), {})
            if not {"exp_avg_sq", "step"} <= state.keys() or "betas" not in group:
                found.append(p.new_zeros(()))
                continue
            moved = True
            correction = 1 - group["betas"][1] ** float(state["step"])
            found.append((state["exp_avg_sq"] / correction).sqrt().add_(group["eps"]).reciprocal_())
        return found if moved else None

    def squared(
        whole: Sequence[torch.Tensor], halves: Halves, weights: Sequence[float], sizes: Sequence[float]
    ) -> Squared:
        found = {"sign": _sign(whole, halves, weights, sizes)}
        p = scales()
        if p is not None:
            together = sum(w * w for w in weights)
            parts = sum(w * w / together * _weighed(half, p) for w, half in zip(weights, halves, strict=True))
            found["adam"] = torch.as_tensor(parts), _weighed(whole, p)
        return found

    return squared


def _weighed(gradient: Sequence[torch.Tensor], scales: Sequence[torch.Tensor]) -> torch.Tensor:
    """g' P g."""
    return torch.stack([(g.float().square() * p).sum() for g, p in zip(gradient, scales, strict=True)]).sum()


def _sign(
    whole: Sequence[torch.Tensor], halves: Halves, weights: Sequence[float], sizes: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum_i sigma_i)^2 and (sum_i |g_i|)^2, written as the two squared norms that the estimator takes.

    With halves of s_1 and s_2 units, g_1 - g_2 has variance sigma^2 (1 / s_1 + 1 / s_2) in each coordinate.
    """
    first, second = halves
    apart = torch.stack([(a - b).float().abs().sum() for a, b in zip(first, second, strict=True)]).sum()
    noise = (apart * math.sqrt(math.pi / 2) / math.sqrt(sum(1 / s for s in sizes))).square()
    signal = torch.stack([g.float().abs().sum() for g in whole]).sum().square()
    _, part_size, batch_size = shape_of(weights, sizes)
    return signal + noise / part_size, signal + noise / batch_size
