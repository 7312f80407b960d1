"""What is the advice, in numbers? From the trials, the profile and the noise scale that one `recommend` rests on.

`analyse_advice` is pure: equal data give an equal answer, on any machine. The words are made in `report`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from batchscope.analysis.decision import (
    BAND,
    BAND_LOSS,
    DOUBT,
    Draws,
    candidate_points,
    candidates_of,
    draws_at,
    measured,
    pareto_front,
)
from batchscope.analysis.limits import binding_limit
from batchscope.analysis.options import Option, log_weights, on_devices, options_of
from batchscope.analysis.particles import Array
from batchscope.analysis.profile import analyse_profile
from batchscope.analysis.rate_curve import rate_curve
from batchscope.analysis.scaling import Predictor
from batchscope.analysis.search import Point, Setting, View, charge, view_of
from batchscope.analysis.splits import largest_micro_batch
from batchscope.analysis.surface import NO_NOISE_SCALE, NOISE_SCALE_SD, Parameters, Posterior, Prior, Run
from batchscope.analysis.target import coarse_note, effective_batch_size
from batchscope.records import (
    TRIED_ROLES,
    Advice,
    AdviceData,
    Candidate,
    Curves,
    Measured,
    ParetoPoint,
    Spent,
    Tried,
    Unverified,
    json_safe,
    to_plain,
)

DRAWS = 4000
DRAWS_KEPT = 400  # for the page's controls
FINE = 60  # points of a curve
LAW_HOLDS = 0.15  # of log examples: the law was within 9 to 18 % of measured points on four tasks (design section 1)
FEWEST_RUNS = 3.0  # reference runs below which no training to the goal is affordable beside the reference run itself
NEVER = Measured(None, None, None, 0, 0, "none: nothing reached the goal")
OF_THE_CHOSEN = (
    "batch_size",
    "learning_rate",
    "micro_batch_size",
    "accumulation",
    "devices",
    "seconds_to_goal",
    "steps_to_goal",
    "examples_to_goal",
    "seconds_per_step",
    "cost",
    "joules",
    "lowest_loss",
    "over_own",
)
WHOLE = ("question", "candidates", "s_min", "knee", "largest_micro_batch_size", "learning_rate_curve", "law_holds")
WHOLE += ("law_misfit", "better", "pareto")


def analyse_advice(data: AdviceData) -> Advice:
    """Everything that the records of one `recommend` say; `sentences` and `snippet` are left empty."""
    options, view = look(data, DRAWS)
    weak, loss = is_weak(data), by_loss(data)
    reached = loss or any(t.reached is not None for t in data.trials)
    point, verified = chosen_point(data, view)
    indices = candidate_points(view, point)
    draws = draws_at(view, indices, options, data.train_size, data.question.objective, loss)
    found = candidates_of(
        draws,
        options,
        data.trials,
        price=data.question.price,
        own=_own_values(data, view, draws),
        own_reached=loss or any(t.reached is not None for t in data.trials if _is_own(data, t)),
        absolute=reached and not weak,
        loss=loss,
    )
    best = int(np.argmin(view.means[indices]))
    at = best if point is None else draws.points.index(point)
    chosen = found[at] if point is not None or weak else None
    profile, p = analyse_profile(data.profile), view.posterior.p
    limit, why = binding_limit(chosen, found, profile, data, p) if chosen is not None else ("none", "")
    gain = float(view.means[indices[at]] - view.means[indices[best]])
    misfit, curves = float(np.median(p.tau)), _curves(draws, view.posterior)
    return Advice(
        task=data.task,
        fingerprint=data.fingerprint,
        question=data.question,
        answered=chosen is not None,
        chosen=chosen,
        verified=verified,
        candidates=found,
        good_batch_sizes=tuple(c.batch_size for c in found if c.p_good > DOUBT) if chosen is not None else (),
        binding_limit=limit,
        binding_why=why,
        critical_batch_size=_critical(data, p),
        s_min=measured(p.log_s_min[:, 0], len(data.trials)) if reached and not loss else NEVER,
        knee=profile.knee,
        largest_micro_batch_size=(largest_micro_batch(data.profile) or None) if data.profile.memory else None,
        learning_rate_curve=rate_curve([b for b, _ in draws.points], view.posterior, len(data.trials)),
        law_holds=misfit <= LAW_HOLDS,
        law_misfit=misfit,
        curves=curves,
        better=_better(data, options, found[best], draws.examples[:, best])
        if gain > math.log1p(BAND_LOSS if loss else BAND) and not weak
        else None,
        pareto=_pareto(data, found) if reached and not loss and not weak else (),
        sentences=(),
        snippet="",
        evidence=_evidence(data),
        spent=_spent(data),
        data=data,
        notes=tuple(dict.fromkeys((*data.notes, *_notes(data, misfit), *_coarse(data, chosen)))),
    )


# --- the data as the model reads them ---


def is_weak(data: AdviceData) -> bool:
    """Whether runs to the goal were not affordable: then throughput and noise scale answer, in ratios only."""
    return data.question.budget < FEWEST_RUNS and not by_loss(data)


def by_loss(data: AdviceData) -> bool:
    """Whether the lowest loss in a given time is asked for, instead of the time to a goal."""
    return data.question.best_in_seconds is not None or data.question.best_in_examples is not None


def look(
    data: AdviceData, draws: int, seed: int = 0, known: dict[int, Option] | None = None
) -> tuple[dict[int, Option], View]:
    """The options of the machine by batch size, and the posterior at every point; `known`: the options, if they are."""
    options = known or options_in(data)
    setting = setting_of(data, options)
    return options, view_of(setting, runs_of(data), prior_of(data, setting), draws, seed)


def options_in(data: AdviceData) -> dict[int, Option]:
    """What every batch size costs, by batch size: on one device, or on the number of devices that suits it best."""
    found = options_of(data.profile, data.train_size, data.coupled, data.own_batch_size)
    if data.scaling is not None:
        ceiling = largest_micro_batch(data.profile) if data.profile.memory is not None else data.train_size
        question = data.question
        found = on_devices(found, Predictor(data.scaling), question.devices, question.objective, ceiling)
    return {option.batch_size: option for option in found}


def setting_of(data: AdviceData, options: Mapping[int, Option]) -> Setting:
    """What the search knows of task and machine."""
    question, loss = data.question, by_loss(data)
    found = list(options.values())
    return Setting(
        sizes=tuple(options),
        log_weights=log_weights(found, question.objective, data.train_size, question.price),
        own_batch_size=data.own_batch_size,
        own_learning_rate=data.own_learning_rate,
        budget_examples=data.budget_examples,
        cadence_examples=data.cadence_examples,
        limit_examples=question.budget * data.reference_examples,
        run_examples={b: run_length(data, options[b]) for b in options} if loss else None,
    )


def run_length(data: AdviceData, option: Option) -> int:
    """Examples of every run at a batch size where the lowest loss in a given time is asked for."""
    if data.question.best_in_examples is not None:
        return data.question.best_in_examples
    steps = (data.question.best_in_seconds or 0.0) / (option.seconds.estimate or math.inf)
    return max(1, math.floor(steps * effective_batch_size(data.train_size, option.batch_size)))


def runs_of(data: AdviceData) -> list[Run]:
    """The trials: at their goal, or at the provisional one while none has reached the goal. Failed ones say nothing."""
    real = any(t.reached is not None for t in data.trials)
    if by_loss(data):
        return [
            Run(t.batch_size, t.learning_rate, math.log(t.lowest_loss or 1.0), False, t.lowest_loss is None)
            for t in data.trials
            if t.outcome != "failed" and (t.lowest_loss or 1.0) > 0
        ]
    runs = []
    for t in data.trials:
        value = t.reached if real else t.provisional
        if t.outcome == "failed":
            continue
        log = math.log(max(value if value is not None else t.bound, 1.0))
        runs.append(Run(t.batch_size, t.learning_rate, log, value is None, value is None and t.outcome == "diverged"))
    return runs


def prior_of(data: AdviceData, setting: Setting) -> Prior:
    """The own point; log E about there from its own run; B_crit about the noise scale where that was measured."""
    about, noise = NO_NOISE_SCALE, data.noise
    if noise is not None and noise.estimate is not None:
        about = (math.log(noise.estimate), NOISE_SCALE_SD)
    elif noise is not None and noise.low:
        about = (math.log(noise.low) + NOISE_SCALE_SD / 2, NOISE_SCALE_SD)
    own = setting.own_batch_size, setting.own_learning_rate
    if by_loss(data):
        known = [t.lowest_loss for t in data.trials if t.lowest_loss]
        return Prior(*own, math.log(known[0]) if known else 0.0, about, setting.log_weights)
    needed = next((t.reached for t in data.trials if t.role == "reference" and t.reached is not None), None)
    return Prior(*own, math.log(needed if needed is not None else data.reference_examples), about)


def chosen_point(data: AdviceData, view: View) -> tuple[Point | None, bool]:
    """(the point to recommend, verified): the best that was verified, else the best that reached, else None."""
    for roles in (("verification",), TRIED_ROLES):
        reached = {
            (t.batch_size, t.learning_rate)
            for t in data.trials
            if t.role in roles and (t.reached is not None or (by_loss(data) and t.lowest_loss is not None))
        }
        known = [k for k, point in enumerate(view.points) if point in reached]
        if known and not is_weak(data):
            return view.points[min(known, key=lambda k: view.means[k])], roles == ("verification",)
    return None, False


# --- parts of the answer ---


def _own_values(data: AdviceData, view: View, draws: Draws) -> Array:
    """(N,) draws of the log objective at the user's own point, with the same seconds as its batch size's candidate."""
    index = view.points.index((data.own_batch_size, data.own_learning_rate))
    beside = [b for b, _ in draws.points].index(data.own_batch_size)
    k = view.points.index(draws.points[beside])
    return view.examples[:, index] + draws.objective[:, beside] - view.examples[:, k]


def _is_own(data: AdviceData, trial: Tried) -> bool:
    return (trial.batch_size, trial.learning_rate) == (data.own_batch_size, data.own_learning_rate)


def _critical(data: AdviceData, p: Parameters) -> Measured:
    known = data.noise is not None and data.noise.estimate is not None
    about = f", prior {'the noise scale' if known else 'wide'}, {len(data.trials)} trials"
    return measured(p.log_b_crit[:, 0], len(data.trials), about=about)


def _curves(draws: Draws, posterior: Posterior) -> Curves:
    """What the page draws: the law on a fine grid, seconds as timed, and some draws of both."""
    sizes = [b for b, _ in draws.points]
    grid = np.geomspace(sizes[0], sizes[-1], FINE)
    steps = np.exp(np.quantile(posterior.p.law(np.log(grid)) - np.log(grid), (0.05, 0.5, 0.95), axis=0)).T
    ends = np.exp(np.quantile(draws.seconds, (0.05, 0.5, 0.95), axis=0)).T
    kept = np.linspace(0, len(draws.examples) - 1, DRAWS_KEPT).astype(int)
    return Curves(
        batch_sizes=tuple(float(b) for b in grid),
        steps=tuple(_three(row) for row in steps),
        sizes_timed=tuple(sizes),
        seconds_per_step=tuple(_three(row) for row in ends),
        draws_log_examples=tuple(tuple(round(float(v), 4) for v in draws.examples[d]) for d in kept),
        draws_log_seconds=tuple(tuple(round(float(v), 4) for v in draws.seconds[d]) for d in kept),
        draws_log_charge=tuple(tuple(round(float(v), 3) for v in charge(draws.lost[d])) for d in kept),
    )


def _three(row: Array) -> tuple[float, float, float]:
    low, middle, high = (float(v) for v in row)
    return low, middle, high


def _better(data: AdviceData, options: Mapping[int, Option], candidate: Candidate, log_examples: Array) -> Unverified:
    """The candidate that is predicted to be the best, and what one run of it would take."""
    if by_loss(data):
        return Unverified(candidate, run_length(data, options[candidate.batch_size]) / data.reference_examples)
    return Unverified(candidate, float(np.exp(np.median(log_examples))) / data.reference_examples)


def _pareto(data: AdviceData, found: Sequence[Candidate]) -> tuple[ParetoPoint, ...]:
    """The front. Several devices as the pass over them says; without one, communication is taken to be free.

    Then a step on N devices takes what B / N examples take on one: interpolated between the sizes, log against log,
    below the smallest as there, so that what is predicted is the best that more devices could do.
    """
    alone = options_of(data.profile, data.train_size, data.coupled, data.own_batch_size)
    single = {o.batch_size: o.seconds.estimate for o in alone if o.seconds.estimate}
    x, y = np.log(list(single)), np.log(list(single.values()))
    predictor = Predictor(data.scaling) if data.scaling is not None else None

    def seconds_at(devices: int, batch_size: int) -> tuple[float, bool]:
        if predictor is not None and predictor.can(devices, batch_size):
            seconds, timed = predictor.seconds(devices, batch_size)
            return seconds.estimate or math.nan, timed
        if devices == 1:
            return single.get(batch_size, math.nan), True
        return float(np.exp(np.interp(math.log(batch_size / devices), x, y))), False

    return tuple(pareto_front(found, seconds_at, data.question.price or 1.0))


def _evidence(data: AdviceData) -> str:
    if is_weak(data):
        return "throughput and noise scale"
    return "trials of a given length" if by_loss(data) else "trials to goal"


def _spent(data: AdviceData) -> Spent:
    return Spent(data.examples, data.steps, data.seconds, len(data.trials), data.examples / data.reference_examples)


def _notes(data: AdviceData, misfit: float) -> list[str]:
    """What a reader must know before trusting the answer, one sentence each."""
    notes = []
    if misfit > LAW_HOLDS and not is_weak(data):
        notes.append(
            f"Steps to goal lie {misfit:.0%} off the law S_min (1 + B_crit / B), typically: measured points are "
            "believed over it, and what was not run is less sure."
        )
    if not data.reference_reached and data.goal is not None:
        notes.append(
            "The task's own point did not reach the goal: a reference run is counted as the task's whole budget, "
            f"{data.reference_examples:,.0f} examples."
        )
    if data.noise is None:
        notes.append("No gradient noise scale was measured: the critical batch size has a wide prior.")
    return notes


def _coarse(data: AdviceData, chosen: Candidate | None) -> list[str]:
    """Whether the recommended point gets there within a few evaluations, which lie a step apart at least."""
    if chosen is None:
        return []
    between = max(data.cadence_examples, chosen.batch_size)
    return coarse_note(between, chosen.examples_to_goal.estimate, f"examples that batch size {chosen.batch_size} needs")


def advice_to_json(advice: Advice) -> dict[str, Any]:
    """The contract of `recommend --json`: numbers that JSON cannot hold (nan, inf) become null."""
    chosen = to_plain(advice.chosen) if advice.chosen is not None else {}
    answer: dict[str, Any] = {
        "task": advice.task,
        "fingerprint": advice.fingerprint,
        "objective": advice.question.objective,
        "answered": advice.answered,
        **{name: chosen.get(name) for name in OF_THE_CHOSEN},
        "good_batch_sizes": list(advice.good_batch_sizes),
        "p_best": {str(c.batch_size): c.p_best for c in advice.candidates},
        "binding_limit": advice.binding_limit,
        "binding_why": advice.binding_why,
        "verified": advice.verified,
        "critical_batch_size": advice.critical_batch_size.to_json(),
        "evidence": advice.evidence,
        "spent": {name: getattr(advice.spent, name) for name in ("examples", "steps", "seconds", "reference_runs")},
        "sentences": list(advice.sentences),
        "snippet": advice.snippet,
        **{name: to_plain(getattr(advice, name)) for name in WHOLE},
        "conditions": to_plain(advice.data.conditions),
        "notes": list(advice.notes),
        "report": advice.report,
        "trials": to_plain(advice.data.trials),
    }
    return json_safe(answer)
