"""Up to which k does the loss recover when a checkpoint goes on with k times the batch size?

Merrill et al. 2025 (arXiv 2505.23971): branches from one checkpoint, the same data, batch k B, learning rate f(k) eta.

    L_k   = sum_t w_t l_t / sum_t w_t,     w_t = exp(-(W - u_t) / tau) - exp(-(W - u_(t-1)) / tau)
    k*    = the largest k with  L_k <= L_j + tolerance  for all j < k,      local critical batch size  k* B,

l_t the loss of batch t before its step, u_t the units (examples or tokens) used after it, W the window. w_t is what an
exponential moving average gives to the units of batch t: with tau in units, the same for all branches, an example
weighs the same in each of them, so its own difficulty drops out of their differences. The paper's average forgets half
per batch, tau = k B / ln 2 of each branch's own batch; here it is that of the largest, and at least `TAIL` of W.

*How sure.* Branches are paired by data order s: D_js = L_ks - L_js has a Student t interval over the orders. The spread
is each pair's own, not pooled over k (rule of measurement 1): on the noisy quadratic it grew sixfold from k = 2 to 4.
A branch recovered if every pair's 95 % interval ends at or below the tolerance (each pair must show it, so that no
correction is due), and did not if the interval of one of m pairs begins above it, at the one-sided level
min(2.5 %, 5 % / m): uncorrected, five equal pairs said so wrongly in 10 % of simulated cases.

A batch's loss is read before its step, hence at weights that are older than the base's, by (k - 1) B / 2 units or a
little more. While the loss falls, that counts against large k; where it may decide, a note says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from batchscope.analysis.target import Value
from batchscope.analysis.uncertainty import LEVEL, pooled
from batchscope.records import Measured
from batchscope.records.branching import Branch, BranchAnswer, BranchPoint

TAIL = 1 / 8  # least time constant, as a share of the window (a guess)
FAMILY = 0.05  # error of a "no", over all pairs of a k
DIVERGED_FACTOR = 10.0  # of the checkpoint's loss, as in training/loop.py (a guess)

Losses = Mapping[float, Mapping[int, float]]  # k -> data order -> L_k; inf where the branch diverged


def final_loss(branch: Branch, window: float, smoothing: float) -> float:
    """L_k of one branch: the moving average of its losses at the window's end; inf where it ended before by divergence.

    Of a last batch that goes past the window only the units inside it count.
    """
    if branch.diverged or not branch.losses:
        return math.inf
    return float(_weights(branch, window, smoothing) @ np.asarray(branch.losses))


def smoothing_of(branches: Sequence[Branch], window: float) -> float:
    """The time constant tau in units: the largest batch is forgotten to a half by the next, at least `TAIL` of W."""
    units = sum(sum(b.units) for b in branches)
    examples = sum(b.batch_size * len(b.units) for b in branches)
    largest = max(b.batch_size for b in branches) * (units / examples if examples else 1.0)
    return max(largest / math.log(2), TAIL * window)


def final_losses(branches: Sequence[Branch], window: float, smoothing: float, tolerance: float) -> Losses:
    """L_k by k and data order, k = 0 being the checkpoint, which stands still.

    Diverged also counts who ends above the checkpoint by 10 (|its loss| + tolerance).
    """
    found: dict[float, dict[int, float]] = {}
    for b in sorted(branches, key=lambda b: b.k):
        loss = final_loss(b, window, smoothing)
        start = found[0.0][b.seed] if b.k > 0 else loss
        high = loss - start > DIVERGED_FACTOR * (abs(start) + tolerance)
        found.setdefault(b.k, {})[b.seed] = math.inf if high else loss
    return found


def differences(losses: Losses, k: float, other: float) -> np.ndarray:
    """L_k - L_other of every data order that both have."""
    return np.array([loss - losses[other][s] for s, loss in losses[k].items() if s in losses[other]])


def student(values: np.ndarray, what: str) -> Measured:
    """The mean of one finite value per data order, with its 95 % t interval."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Measured(mean, None, None, n, 0, "none: one data order has no spread")
    half = _half(values, (1 - LEVEL) / 2)
    return Measured(mean, mean - half, mean + half, n, 0, f"95 % t on {what} of {n} data orders, {n - 1} df")


def judged(losses: Losses, k: float, tolerance: float) -> tuple[str, str]:
    """Whether branch k recovered, one of RECOVERED, and the sentence that it rests on; see the top of this file.

    A smaller branch that diverged is no bar to be measured against, and is left out.
    """
    lost, orders = _lost(losses, k), len(losses[k])
    if lost:
        return "no", f"diverged on {lost} of {orders} data orders"
    smaller = _bars(losses, k)
    if not smaller:
        return "not resolved", "no smaller batch size ran to its end to compare with"
    pairs = {j: differences(losses, k, j) for j in smaller}
    worst = max(smaller, key=lambda j: float(pairs[j].mean()))
    about = f"{float(pairs[worst].mean()):+.2g} against k = {worst:g}, the lowest of the smaller ones"
    if orders < 2:
        return "not resolved", f"{about}; one data order has no spread"
    if all(float(d.mean()) + _half(d, (1 - LEVEL) / 2) <= tolerance for d in pairs.values()):
        return "yes", f"{about}; every interval ends within the tolerance of {tolerance:g}"
    one_sided = min((1 - LEVEL) / 2, FAMILY / len(smaller))
    if any(float(d.mean()) - _half(d, one_sided) > tolerance for d in pairs.values()):
        return "no", f"{about}; its interval begins above the tolerance of {tolerance:g}"
    return "not resolved", f"{about}; the intervals hold the tolerance of {tolerance:g}"


def passes(losses: Losses, k: float, tolerance: float) -> bool:
    """Merrill's own rule, on mean losses: at most the tolerance above every smaller k, of which there is one."""
    smaller = _bars(losses, k)
    if _lost(losses, k) or not smaller:
        return False
    return all(float(differences(losses, k, j).mean()) <= tolerance for j in smaller)


def bracket(losses: Losses, tolerance: float) -> tuple[str, float | None, float | None, float | None]:
    """(outcome, k*, low, high) in k: see `BranchAnswer`."""
    ks = list(losses)
    verdicts = {k: judged(losses, k, tolerance)[0] for k in ks}
    low = max((k for k in ks if verdicts[k] == "yes"), default=None)
    high = min((k for k in ks if verdicts[k] == "no" and (low is None or k > low)), default=None)
    best = max((k for k in ks if passes(losses, k, tolerance) and (high is None or k < high)), default=None)
    estimate = best if best != ks[-1] else None
    if low is not None:
        return "at_least" if high is None else "bracketed", estimate, low, high
    return "not_resolved" if high is None else "below", estimate, low, high


def branch_answer(
    branches: Sequence[Branch],
    *,
    batch_size: int,
    window: float,
    unit: str,
    rule: str,
    tolerance: float,
    micro_batch_size: int,
    seconds: Mapping[int, float] | None = None,
    notes: Sequence[str] = (),
) -> BranchAnswer:
    """What the branches say; `branches` hold one with k = 1 and one with k = 0 for every data order.

    Args:
        seconds: per step, by batch size: gives the ratio of time at those sizes, where the base's is among them.
    """
    smoothing = smoothing_of(branches, window)
    found = final_losses(branches, window, smoothing, tolerance)
    losses = {k: by_order for k, by_order in found.items() if k > 0}
    outcome, *ks = bracket(losses, tolerance)
    orders = len(losses[1.0])
    sure = "none: one data order has no spread" if orders < 2 else _about(outcome, orders)
    sizes = [None if k is None else k * batch_size for k in ks]
    saved = [None if k is None else 1 - 1 / k for k in ks]
    learned = _learned(found)
    warned = _warnings(branches, losses, learned, window, smoothing, tolerance, unit)
    return BranchAnswer(
        outcome=outcome,
        recovered_up_to=Measured(sizes[0], sizes[1], sizes[2], orders, 0, sure),
        steps_saved=Measured(saved[0], saved[1], saved[2], orders, 0, sure),
        learned=learned,
        points=_points(branches, losses, tolerance, batch_size, seconds or {}),
        batch_size=batch_size,
        unit=unit,
        window=window,
        smoothing=smoothing,
        rule=rule,
        tolerance=tolerance,
        micro_batch_size=micro_batch_size,
        evidence=_evidence(window, unit, tolerance),
        branches=tuple(branches),
        spent=sum(sum(b.units) for b in branches),
        notes=(*notes, *warned),
    )


def _weights(branch: Branch, window: float, smoothing: float) -> np.ndarray:
    """w_t / sum_t w_t of each step."""
    edges = np.minimum(np.cumsum([0.0, *branch.units]), window)
    weights = np.diff(np.exp((edges - window) / smoothing))
    return weights / weights.sum()


def _age(branch: Branch, window: float, smoothing: float) -> float:
    """Units trained on when the losses were read, averaged as the losses are."""
    return float(_weights(branch, window, smoothing) @ np.cumsum([0.0, *branch.units[:-1]]))


def _half(values: np.ndarray, one_sided: float) -> float:
    """t(n - 1) times the standard error."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(stats.t.isf(one_sided, len(values) - 1)) * error


def _lost(losses: Losses, k: float) -> int:
    """Data orders on which branch k diverged."""
    return sum(not math.isfinite(loss) for loss in losses[k].values())


def _bars(losses: Losses, k: float) -> list[float]:
    """The smaller ks that ran to their end on every data order."""
    return [j for j in losses if j < k and not _lost(losses, j)]


def _points(
    branches: Sequence[Branch], losses: Losses, tolerance: float, batch_size: int, seconds: Mapping[int, float]
) -> tuple[BranchPoint, ...]:
    """One point per k."""
    whole = {k: [Value(x) for x in by.values()] for k, by in losses.items() if not _lost(losses, k)}
    means = pooled(whole, log=False)
    points = []
    for k in losses:
        own = [b for b in branches if b.k == k]
        recovered, reason = judged(losses, k, tolerance)
        points.append(
            BranchPoint(
                k=k,
                batch_size=own[0].batch_size,
                learning_rate=own[0].learning_rate,
                steps=float(np.mean([len(b.losses) for b in own])),
                units=float(np.mean([sum(b.units) for b in own])),
                loss=means[k] if k in means else _diverged(losses, k),
                excess=_excess(losses, k),
                recovered=recovered,
                diverged=_lost(losses, k) > 0,
                reason=reason,
                time_ratio=_time_ratio(k, own[0].batch_size, batch_size, seconds),
            )
        )
    return tuple(points)


def _diverged(losses: Losses, k: float) -> Measured:
    lost, n = _lost(losses, k), len(losses[k])
    return Measured(None, None, None, n, lost, f"none: diverged on {lost} of {n} data orders")


def _excess(losses: Losses, k: float) -> Measured:
    """L_k - L_1, paired by data order."""
    for which in (k, 1.0):
        if _lost(losses, which):
            found = _diverged(losses, which)
            text = found.interval if which == k else found.interval.replace("none: ", "none: the base ")
            return Measured(None, None, None, found.n, found.censored, text)
    if k == 1:
        return Measured(0.0, 0.0, 0.0, len(losses[k]), 0, "exact: the base itself")
    return student(differences(losses, k, 1.0), "the paired differences")


def _time_ratio(k: float, size: int, base: int, seconds: Mapping[int, float]) -> Measured | None:
    """Seconds for the same data over the base's: a k-th of the steps, each t(k B) / t(B) as long."""
    if size not in seconds or base not in seconds:
        return None
    ratio = seconds[size] / seconds[base] / k
    return Measured(ratio, None, None, 0, 0, "none: seconds per step were given without one")


def _learned(found: Losses) -> Measured:
    """How far the base's loss lies below the checkpoint's at the window's end, on the same examples."""
    if _lost(found, 1.0):
        return _excess(found, 1.0)
    if _lost(found, 0.0):
        return Measured(None, None, None, len(found[0.0]), 0, "none: the checkpoint's own loss is not finite")
    return student(differences(found, 0.0, 1.0), "the paired differences")


def _about(outcome: str, orders: int) -> str:
    """What the bracket's ends are, and by which method."""
    ends = {
        "bracketed": "recovered at `low`, not at `high`",
        "at_least": "recovered at `low`, no upper end",
        "below": "not recovered at `high`, no lower end",
        "not_resolved": "none: no batch size is resolved",
    }[outcome]
    return f"{ends}; each 95 %, paired t on {orders} data orders, {orders - 1} df"


def _evidence(window: float, unit: str, tolerance: float) -> str:
    return (
        f"Weaker than runs to a goal. Local recovery is assumed: a branch whose loss is back within {tolerance:g} "
        f"after {window:,.6g} {unit} is taken to go on as the base would (Merrill et al. 2025). It gives ratios only."
    )


def _warnings(
    branches: Sequence[Branch],
    losses: Losses,
    learned: Measured,
    window: float,
    smoothing: float,
    tolerance: float,
    unit: str,
) -> list[str]:
    """What a reader of the bracket must know of these very branches."""
    if learned.estimate is None:
        return ["The base itself (k = 1) diverged: lower its learning rate before asking for a larger batch."]
    found = []
    if learned.estimate <= 0 or (learned.low is not None and learned.low <= 0):
        found.append(
            f"The base itself (k = 1) is not shown to end below the checkpoint's own loss ({-learned.estimate:+.2g}): "
            f"there may be nothing to recover. Train longer than {window:,.6g} {unit}, or at a lower learning rate."
        )
    elif learned.estimate <= tolerance:
        found.append(
            f"The base (k = 1) ends only {learned.estimate:.2g} below the checkpoint's own loss, with a tolerance of "
            f"{tolerance:g}: a branch that learned nothing would count as recovered. Give a longer window, or a "
            "smaller tolerance."
        )
    unsure = [f"{k:g}" for k in losses if _bars(losses, k) and judged(losses, k, tolerance)[0] == "not resolved"]
    if unsure:
        found.append(f"Not resolved by these {len(losses[1.0])} data orders: k = {', '.join(unsure)}. Give more seeds.")
    delay = _delay(branches, losses, window, smoothing)
    if delay > tolerance / 2:
        found.append(
            f"Losses are read before a step, so those of the largest batch are of older weights: about {delay:.2g} of "
            "its excess comes of that alone. A longer window makes it less."
        )
    passed = [k for k in losses if passes(losses, k, tolerance)]
    compared = [k for k in losses if _lost(losses, k) or _bars(losses, k)]
    skipped = [f"{k:g}" for k in compared if passed and k < passed[-1] and k not in passed]
    if skipped:
        found.append(f"Not monotone: k = {passed[-1]:g} recovers by its mean loss, k = {', '.join(skipped)} does not.")
    return found


def _delay(branches: Sequence[Branch], losses: Losses, window: float, smoothing: float) -> float:
    """What older weights add to the loss of the largest k that ran to its end; 0 where the base's does not fall.

    The units by which its weights are older, times the base's fall per unit over the window's last half.
    """
    largest = max((k for k in losses if not _lost(losses, k)), default=1.0)
    found = []
    for base in (b for b in branches if b.k == 1):
        (other,) = (b for b in branches if b.k == largest and b.seed == base.seed)
        halves = [(final_loss(base, w, smoothing), _age(base, w, smoothing)) for w in (window / 2, window)]
        (before, early), (after, late) = halves
        found.append((late - _age(other, window, smoothing)) * (before - after) / (late - early))
    return max(float(np.mean(found)), 0.0)
