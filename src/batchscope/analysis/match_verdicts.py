"""Does a remedy match the baseline? Its excess loss, paired by seed, and what one may say of it.

With L_rs and L_bs the lowest validation losses of remedy and baseline with seed s, over the n seeds that both have,

    excess e = mean (L_rs - L_bs) / m,    m = |mean L_b|,        interval: e +- t(n - 1) sd(y) / sqrt(n)
    y_s = (L_rs - L_bs - e (L_bs - mean L_b)) / m                (the minus becomes a plus where the mean is below 0)

y is the linearised ratio: it lets the baseline's own mean be uncertain too. For excesses about the room that is next to
nothing, and y the difference paired by seed; without it, intervals of excesses of half the loss were far too narrow. A
seed that diverged or failed has no finite excess: it is counted, and such a remedy never matches.

    matches     the one-sided 95 % upper bound of the excess lies below the room
    narrows     else, where it ends below the untuned large batch, paired by seed: one-sided 95 %
    does not    else

The room is 1 % of the baseline's loss, or a quarter of the untuned gap if that is less and the gap exists (its
two-sided 95 % interval lies above 0). Each remedy is judged by itself: 5 of 100 whose excess is just the room are said
to match.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from batchscope.analysis.uncertainty import LEVEL
from batchscope.records import Gap, Measured

MOST_ROOM = 0.01  # of the baseline's loss
SHARE_OF_GAP = 0.25  # of the untuned gap
MOST_SEEDS = 1000  # beyond it, more seeds are no advice
NO_SPREAD = "none: one seed has no spread"

Losses = Mapping[int, float]  # seed -> lowest validation loss, inf for a run that diverged or failed


@dataclass(frozen=True)
class Excess:
    """An excess over the baseline, with its two one-sided 95 % bounds; None where there are none."""

    measured: Measured
    lower: float | None = None
    upper: float | None = None
    sd: float | None = None  # of y


@dataclass(frozen=True)
class Verdict:
    """One of VERDICTS; whether more seeds could turn it into a match, and about how many."""

    verdict: str
    resolved: bool
    seeds_wanted: int | None = None


def excess_of(own: Losses, baseline: Losses) -> Excess:
    """The relative excess over the seeds that both have. Baseline seeds that diverged or failed are left out."""
    seeds = [s for s in sorted(set(own) & set(baseline)) if math.isfinite(baseline[s])]
    b = np.array([baseline[s] for s in seeds])
    if not seeds or not np.mean(b):
        why = "none: no seed in common with the baseline" if not seeds else "none: the baseline's loss is 0"
        return Excess(Measured(None, None, None, len(seeds), 0, why))
    unit = abs(float(np.mean(b)))
    values = [(own[s] - baseline[s]) / unit for s in seeds]
    lost = [x for x in values if not math.isfinite(x)]
    if lost:
        return Excess(without_lost(values))
    x = np.array(values)
    return _of_values(x - np.mean(x) * (b / np.mean(b) - 1))


def _of_values(x: np.ndarray) -> Excess:
    n, mean = len(x), float(np.mean(x))
    if n < 2:
        return Excess(Measured(mean, None, None, n, 0, NO_SPREAD))
    sd = float(np.std(x, ddof=1))
    half, side = (float(stats.t.ppf(level, n - 1)) * sd / math.sqrt(n) for level in (0.5 + LEVEL / 2, LEVEL))
    text = f"t on differences paired by seed, {n - 1} df"
    return Excess(Measured(mean, mean - half, mean + half, n, 0, text), mean - side, mean + side, sd)


def without_lost(values: Sequence[float]) -> Measured:
    """Of seeds some of which diverged or failed: no estimate, only that it is at least the mean of the others."""
    finite = [x for x in values if math.isfinite(x)]
    lost = len(values) - len(finite)
    low = float(np.mean(finite)) if finite else None
    return Measured(None, low, None, len(values), lost, f"bound: {lost} of {len(values)} seeds diverged or failed")


def gap_of(batch_size: int, untuned: Losses, baseline: Losses) -> Gap:
    """The gap that there is to close; runs that diverge make one too."""
    excess = excess_of(untuned, baseline).measured
    exists = excess.censored > 0 or (excess.low is not None and excess.low > 0)
    quarter = SHARE_OF_GAP * excess.estimate if exists and excess.estimate is not None else MOST_ROOM
    return Gap(batch_size, excess, exists, min(quarter, MOST_ROOM))


def verdict_of(excess: Excess, room: float, own: Losses, untuned: Losses) -> Verdict:
    """What may be said of a remedy, from its excess and from its losses beside the untuned large batch's."""
    if excess.upper is not None and excess.upper < room:
        return Verdict("matches", True)
    verdict = "narrows" if ends_below(own, untuned) else "does not"
    if excess.measured.censored:
        return Verdict(verdict, True)
    resolved = excess.lower is not None and excess.lower >= room
    return Verdict(verdict, resolved, None if resolved else seeds_wanted(excess, room))


def ends_below(own: Losses, untuned: Losses) -> bool:
    """Whether the losses lie below the untuned ones: one-sided 95 %, paired by seed.

    An untuned seed that diverged or failed counts as its arm's worst that did not; where all did, any finite losses of
    the remedy lie below.
    """
    seeds = sorted(set(own) & set(untuned))
    if not seeds or any(not math.isfinite(own[s]) for s in seeds):
        return False
    finite = [untuned[s] for s in seeds if math.isfinite(untuned[s])]
    if not finite:
        return True
    worst = max(finite)
    x = np.array([own[s] - min(untuned[s], worst) for s in seeds])
    n = len(x)
    if n < 2:
        return False
    return bool(np.mean(x) + stats.t.ppf(LEVEL, n - 1) * np.std(x, ddof=1) / math.sqrt(n) < 0)


def seeds_wanted(excess: Excess, room: float) -> int | None:
    """The least n above the present one with excess + t(n - 1) sd / sqrt(n) < room, if excess and sd stay as they are.

    None where the excess itself is not below the room, no spread is known, or it were more than MOST_SEEDS.
    """
    estimate, sd, n = excess.measured.estimate, excess.sd, excess.measured.n
    if estimate is None or sd is None or estimate >= room:
        return None
    m = np.arange(n + 1, MOST_SEEDS + 1)
    enough = m[estimate + stats.t.ppf(LEVEL, m - 1) * sd / np.sqrt(m) < room]
    return int(enough[0]) if len(enough) else None
