"""How does the best learning rate move with the batch size: linearly, with the square root, not at all, or down?

From the posterior's draws of m(B) (`surface`): the slope d log eta / d log B, averaged over the lower and over the
upper half of the batch sizes that were run, names a shape in each draw,

    falling       the upper half's slope is below -1/8
    saturating    the lower half's is at least 1/4, the upper half's less
    else          by the mean of both: constant below 1/4, square root below 3/4, linear from there on

and the shape of the curve is the one that most draws agree on, if enough do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from batchscope.analysis.decision import measured
from batchscope.analysis.particles import Array
from batchscope.analysis.surface import Posterior
from batchscope.records import LearningRateCurve, Measured

NAMED = 0.8  # probability from which the shape is named (a guess)
QUARTER = 0.25  # of slope: half way between constant (0), square root (1/2) and linear (1)
PLACES = 9  # at which a half's slope is averaged


def rate_curve(sizes: Sequence[int], posterior: Posterior, n: int) -> LearningRateCurve:
    """The best learning rate at `sizes`, from `n` runs; its shape where the draws agree on one."""
    p = posterior.p
    rates = p.best_rate(np.log(np.array(sizes, float))) * math.log(2.0)
    run = np.log(np.array(sorted({r.batch_size for r in posterior.runs} or set(sizes)), float))
    low, high = (p.slope(np.linspace(*ends, PLACES)).mean(axis=1) for ends in halves(run))
    share = {name: float(np.mean(is_it)) for name, is_it in shapes(low, high).items()}
    likely = max(share, key=lambda name: share[name])
    return LearningRateCurve(
        shape=likely if share[likely] >= NAMED else "not resolved",
        probabilities=share,
        rise=_plain(p.rise[:, 0], n),
        fall=_plain(p.fall[:, 0], n),
        batch_sizes=tuple(sizes),
        learning_rates=tuple(measured(rates[:, c], n) for c in range(len(sizes))),
    )


def halves(logs: Array) -> tuple[tuple[float, float], tuple[float, float]]:
    """The lower and the upper half of the batch sizes that were run (logs), one octave wide at least together."""
    least, most = float(logs.min()), float(max(logs.max(), logs.min() + math.log(2.0)))
    return (least, 0.5 * (least + most)), (0.5 * (least + most), most)


def shapes(low: Array, high: Array) -> dict[str, NDArray[np.bool]]:
    """Which draws have which shape, from their mean slopes (N,) over the lower and the upper half of the sizes."""
    mean = 0.5 * (low + high)
    falling = high < -QUARTER / 2
    saturating = ~falling & (low >= QUARTER) & (high < QUARTER)
    rest = ~falling & ~saturating
    return {
        "falling": falling,
        "saturating": saturating,
        "constant": rest & (mean < QUARTER),
        "square root": rest & (mean >= QUARTER) & (mean < 3 * QUARTER),
        "linear": rest & (mean >= 3 * QUARTER),
    }


def _plain(values: Array, n: int) -> Measured:
    low, middle, high = (float(q) for q in np.quantile(values, (0.05, 0.5, 0.95)))
    return Measured(middle, low, high, n, 0, "90% posterior")
