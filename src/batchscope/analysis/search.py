"""Which training run would change the decision most? The next batch sizes and learning rates to try, within a budget.

The objective of a point i = (batch size, learning rate) is V_i = log E_i + log w(B_i): examples to goal times what an
example costs at that batch size (seconds, money, joules, or 1). From the posterior's draws of V come its mean mu and
covariance C over all points. A run at j would move the mean of i by C_ij / sqrt(C_jj + sigma^2) times a standard normal
z, so that the least mean is expected to fall by the *knowledge gradient*

    KG_j = min_i mu_i - E_z min_i (mu_i + z C_ij / sqrt(C_jj + sigma^2))

(Frazier, Powell & Dayanik, INFORMS J. Comput. 21 (2009)). The run with the most of it per example spent comes next; no
more runs once the most is below FIRM. A run ends where it can no longer win: at MARGIN times the best mean.

Where a run is lost, or needs more than the task's own budget, with probability p, it takes 1 / (1 - p) runs to get one
that is not: V is charged -log(1 - p) on top.

Pure numbers: no clock is read and nothing is drawn but by the seed, so that the same runs ask for the same next ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from batchscope.analysis.particles import Array
from batchscope.analysis.surface import Posterior, Prior, Run, fit_surface

FIRM, FIRM_LOSS = 0.004, 0.001  # of the objective: a run expected to gain less is not worth its price (guesses)
MARGIN = 1.5  # times the best mean: beyond, a run has shown all that the decision needs (a guess)
RATES_PER_OCTAVE = 2  # learning rates that are tried: powers of sqrt(2) of the user's own
OCTAVES = 2.5  # on either side of the best known learning rate
FAR = 1.0  # of log: all points that are so much worse than the best count alike; a lost run is noticed (a guess)
MOST_CHARGED = math.log(100.0)  # for a run that is surely lost (a guess; means count FAR of it)
DRAWS = 800
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(15)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
LEAST_EVALUATIONS = 6  # that a run is given before it can be cut off (a guess)
CONFIRMATIONS = 3  # evaluations after the crossing that a run still costs: two to confirm it, one for the step's end
RESERVED = 0.9  # quantile of a verification's examples that is set aside for it (a guess)

Point = tuple[int, float]


@dataclass(frozen=True)
class Setting:
    """What a search knows of the task and the machine; sizes in ascending order."""

    sizes: tuple[int, ...]
    log_weights: Mapping[int, float]  # log w(B)
    own_batch_size: int
    own_learning_rate: float
    budget_examples: int  # the most that one run may use
    cadence_examples: int
    limit_examples: float  # of all runs together
    run_examples: Mapping[int, int] | None = None  # every run is this long: the lowest loss then is the objective
    rates_per_octave: int = RATES_PER_OCTAVE


@dataclass(frozen=True)
class Proposal:
    """A run worth its price; it ends at `cap_examples` (None: at the budget)."""

    batch_size: int
    learning_rate: float
    cap_examples: int | None
    gain: float  # its knowledge gradient


@dataclass(frozen=True)
class View:
    """The posterior at every point: draws of V, log objective, shape (N, points)."""

    posterior: Posterior
    points: tuple[Point, ...]
    examples: Array  # log E, or log of the loss; of runs that are not lost
    lost: Array  # probability of being lost, or of not getting to the goal within the task's budget
    weights: Array  # (points,) log w; 0 for losses
    means: Array

    @property
    def values(self) -> Array:
        """V, the charge for being lost included."""
        return self.examples + self.weights + charge(self.lost)

    @property
    def best(self) -> int:
        """Index of the point with the least mean."""
        return int(np.argmin(self.means))


def view_of(setting: Setting, runs: Sequence[Run], prior: Prior, draws: int = DRAWS, seed: int = 0) -> View:
    """Fit the runs, and look at every batch size at learning rates about its best known one, and at every point run."""
    posterior = fit_surface(runs, prior, draws, seed)
    own = (setting.own_batch_size, setting.own_learning_rate)
    run = {(r.batch_size, r.learning_rate) for r in runs} | {own}
    points = tuple(sorted({*_grid(setting, posterior), *(point for point in run if point[0] in setting.log_weights)}))
    examples, lost, weights = posterior.examples(points), posterior.lost(points), np.zeros(len(points))
    if setting.run_examples is None:
        weights = np.array([setting.log_weights[b] for b, _ in points])
        lost = 1.0 - (1.0 - lost) * (1.0 - late(examples, posterior.p.sigma, setting.budget_examples))
    values = examples + weights + charge(lost)
    return View(posterior, points, examples, lost, weights, typical(values))


def late(examples: Array, sigma: Array, budget_examples: int) -> Array:
    """(N, points) probability that a seed needs more than the task's own budget; its log is normal about `examples`."""
    return special.ndtr((examples - math.log(budget_examples)) / sigma)


def charge(lost: Array) -> Array:
    """What the probability of being lost adds to a log objective."""
    return np.minimum(-np.log1p(-np.minimum(lost, 1.0 - 1e-9)), MOST_CHARGED)


def typical(values: Array) -> Array:
    """(points,) means of draws (N, points), those far above the least median counted as FAR above it."""
    least = float(np.min(np.median(values, axis=0)))
    return np.mean(np.minimum(values, least + FAR), axis=0)


def _grid(setting: Setting, posterior: Posterior) -> list[Point]:
    """Learning rates on the grid of the user's own, OCTAVES either side of the posterior's best, for each size."""
    centre = np.median(posterior.p.best_rate(np.log(np.array(setting.sizes, float))), axis=0)
    own, per = math.log2(setting.own_learning_rate), setting.rates_per_octave
    points = []
    for size, at in zip(setting.sizes, centre, strict=True):
        first, last = math.ceil((at - OCTAVES - own) * per), math.floor((at + OCTAVES - own) * per)
        points += [(size, setting.own_learning_rate * 2.0 ** (k / per)) for k in range(first, last + 1)]
    return points


def proposals(setting: Setting, view: View, spent: float, count: int = 2) -> list[Proposal]:
    """The next runs, at most `count`; none where the decision is firm or no run that matters fits into the budget.

    The price of a verification is set aside. Each further run is chosen as if the ones before it had
    been made, as far as their covariance tells (their values are not known).
    """
    room = setting.limit_examples - spent - reserve(setting, view)
    clipped = np.minimum(view.values, view.means[view.best] + FAR)
    covariance, firm = np.atleast_2d(np.cov(clipped.T)), FIRM if setting.run_examples is None else FIRM_LOSS
    most, noise, fixed = _caps(setting, view), _noise(view), setting.run_examples is not None
    least = most if fixed else LEAST_EVALUATIONS * _between(setting, _sizes(view))
    chosen: list[Proposal] = []
    for _ in range(count):
        caps = np.clip(np.floor(room - _sizes(view)), 1.0, most)  # what is left may cut a run off earlier
        at_caps = None if fixed else _values_at(setting, view, caps)
        gains = knowledge_gradients(view.means, covariance, noise, at_caps)
        worth = np.where((caps >= least) & (gains >= firm), gains / _costs(setting, view, caps), 0.0)
        j = int(np.argmax(worth))
        if worth[j] <= 0.0:
            break
        cap = int(caps[j])
        size, rate = view.points[j]
        whole = setting.run_examples is not None or cap >= setting.budget_examples
        chosen.append(Proposal(size, rate, None if whole else cap, float(gains[j])))
        room -= cap + size
        covariance = covariance - np.outer(covariance[j], covariance[j]) / (covariance[j, j] + noise[j])
    return chosen


def knowledge_gradients(means: Array, covariance: Array, noise: float | Array, caps: Array | None = None) -> Array:
    """KG of a run at each point, shape (points,); `noise` is the variance of one run (at each point).

    A run that is cut off at the value `caps[j]` says no more than that it lies above: all z beyond are one outcome.
    """
    spread = np.sqrt(np.maximum(np.diag(covariance), 0.0) + noise)
    moves = covariance / spread  # column j: how a run at j moves the means
    z = np.repeat(NODES[:, None], len(means), axis=1)
    if caps is not None:
        cut = z > (caps - means) / spread
        share = WEIGHTS @ cut
        z = np.where(cut, (WEIGHTS @ (z * cut)) / np.where(share > 0, share, 1.0), z)
    least = np.array([np.min(means[:, None] + row * moves, axis=0) for row in z])
    return float(np.min(means)) - WEIGHTS @ least


def reserve(setting: Setting, view: View) -> float:
    """Examples set aside for running the best point that reached the goal once more to it; 0 while none did.

    What one seed needs: the error of the mean over seeds, and a seed's own spread.
    """
    reached = {(r.batch_size, r.learning_rate) for r in view.posterior.runs if not r.censored and not r.diverged}
    known = [k for k, point in enumerate(view.points) if point in reached]
    if not known:
        return 0.0
    best = min(known, key=lambda k: view.means[k])
    size = view.points[best][0]
    if setting.run_examples is not None:
        return float(setting.run_examples[size] + size)
    logs, sigma = view.examples[:, best], float(np.median(view.posterior.p.sigma))
    most = math.exp(float(logs.mean()) + special.ndtri(RESERVED) * math.hypot(float(logs.std()), sigma))
    return min(most + CONFIRMATIONS * float(_between(setting, size)), setting.budget_examples) + size


def expected(setting: Setting, view: View, index: int) -> float:
    """Examples that a run at a point is expected to use, to the end of its last step."""
    size = view.points[index][0]
    if setting.run_examples is not None:
        return float(setting.run_examples[size] + size)
    middle = float(np.exp(min(np.median(view.examples[:, index]), 700.0)))
    return middle + CONFIRMATIONS * float(_between(setting, size)) + size


def _between(setting: Setting, size: int | Array) -> float | Array:
    """Examples from one evaluation to the next: the cadence, or a step where that is longer."""
    return np.maximum(setting.cadence_examples, size)


def _sizes(view: View) -> Array:
    return np.array([float(b) for b, _ in view.points])


def _caps(setting: Setting, view: View) -> Array:
    """Examples after which a run at each point has a value beyond MARGIN times the best's, or has confirmed it."""
    if setting.run_examples is not None:
        return np.array([float(setting.run_examples[b]) for b, _ in view.points])
    gap = _between(setting, _sizes(view))
    cap = np.exp(view.means[view.best] + math.log(MARGIN) - view.weights) + CONFIRMATIONS * gap
    return np.minimum(np.ceil(np.maximum(cap, LEAST_EVALUATIONS * gap)), setting.budget_examples)


def _values_at(setting: Setting, view: View, caps: Array) -> Array:
    """V of the latest crossing that a run which ends at its cap can confirm."""
    gap = _between(setting, _sizes(view))
    return np.log(np.maximum(caps - CONFIRMATIONS * gap, gap)) + view.weights


def _noise(view: View) -> Array:
    """(points,) variance of one run: its seed's, and that of being lost or not, which counts as FAR.

    The seeds' is a typical one: while few runs are known, its mean is that of the prior's far tail.
    """
    lost = np.mean(view.posterior.lost(view.points), axis=0)
    return float(np.median(view.posterior.p.sigma)) ** 2 + FAR**2 * lost * (1.0 - lost)


def _costs(setting: Setting, view: View, caps: Array) -> Array:
    """Examples that a run at each point is expected to use."""
    if setting.run_examples is not None:
        return caps + _sizes(view)
    to_goal = np.exp(np.minimum(view.examples, 60.0)) + CONFIRMATIONS * _between(setting, _sizes(view))
    return np.mean(np.minimum(to_goal, caps), axis=0) + _sizes(view)
