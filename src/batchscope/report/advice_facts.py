"""What stands behind an advice, for page and terminal alike? Its tables, and how everything was measured.

Tables keep three significant digits; their intervals are 90 % ones except those of seconds per step, which are as the
timing pass gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from batchscope.analysis.step_time import scaled
from batchscope.records import Advice, Candidate, LearningRateCurve, Measured, Tried
from batchscope.report.advice_numbers import allowance, by_loss, chance, rate
from batchscope.report.noise_words import ABSENT, cell, known
from batchscope.report.profile_facts import conditions_of, engine_of, versions_of
from batchscope.report.profile_words import size_interval, size_of
from batchscope.report.words import count, goal_of, list_of, number, plain, seconds

ROLES = {"reference": "the task's own point", "search": "search", "verification": "verification, fresh seed"}
OUTCOMES = {"reached": "reached", "not_reached": "not reached", "diverged": "diverged", "failed": "failed"}
MS = 1e3  # milliseconds per second
LEAST_LOST = 0.005  # probability of being lost that is worth saying
OBJECTIVE_WORDS = {
    "time": "the least time",
    "cost": "the least cost",
    "examples": "the fewest examples",
    "energy": "the least energy",
}


class Table(NamedTuple):
    """A table's text: title, headings, rows, and the columns that stand to the left."""

    title: str
    headings: list[str]
    rows: list[list[str]]
    left: tuple[str, ...] = ()


class Column(NamedTuple):
    """A column of the candidates: its heading, and what it says of one (a dash where it says nothing)."""

    title: str
    of: Callable[[Candidate], str]


# --- candidates ---


def decision_columns(advice: Advice, dash: str = "-") -> list[Column]:
    """What the decision rests on: the objective, P(best), whether it was run."""
    return [
        Column("batch size", lambda c: count(c.batch_size)),
        Column("learning rate", lambda c: rate(c.learning_rate)),
        Column("split", split_cell),
        Column("P(best) (%)", lambda c: percent(c.p_best)),
        Column("P(good) (%)", lambda c: percent(c.p_good)),
        Column("P(lost) (%)", lambda c: percent(c.p_lost) if c.p_lost >= LEAST_LOST else ABSENT),
        Column("lowest loss", lambda c: cell(c.lowest_loss, dash)),
        Column("seconds to goal", lambda c: cell(c.seconds_to_goal, dash)),
        Column("runs", lambda c: f"{c.trials}" if by_loss(advice) else f"{c.reached}/{c.trials}"),
        Column("evidence", lambda c: "extrapolated" if c.extrapolated else "run"),
    ]


def detail_columns(advice: Advice, dash: str = "-") -> list[Column]:
    """What the objective is made of."""
    money = "cost" if advice.question.price is not None else "device hours"
    paid = advice.question.price is not None or advice.question.objective == "cost"
    return [
        Column("batch size", lambda c: count(c.batch_size)),
        Column("steps to goal", lambda c: cell(c.steps_to_goal, dash)),
        Column("examples to goal", lambda c: cell(c.examples_to_goal, dash)),
        Column("over own point", lambda c: cell(c.over_own, dash)),
        Column("step (ms)", lambda c: cell(scaled(c.seconds_per_step, MS), dash)),
        *([Column(money, lambda c: cell(c.cost, dash))] if paid else []),
        Column("energy (J)", lambda c: cell(c.joules, dash)),
    ]


def split_cell(candidate: Candidate) -> str:
    """`64×2`: micro-batch size times accumulation, and times devices where there are several."""
    devices = f"×{count(candidate.devices)}" if candidate.devices > 1 else ""
    return f"{count(candidate.micro_batch_size)}×{count(candidate.accumulation)}{devices}"


def percent(p: float) -> str:
    """A probability in percent: 67, <1, >99."""
    return ">99" if p >= 0.995 else "<1" if p < 0.005 else f"{100 * p:.0f}"


def candidates_table(advice: Advice, columns: Sequence[Column], title: str) -> Table:
    """A row per batch size; columns that say nothing of any are left out."""
    cells = {c.title: [c.of(candidate) for candidate in advice.candidates] for c in columns}
    used = [name for name, column in cells.items() if any(text != ABSENT for text in column)]
    return Table(title, used, [list(row) for row in zip(*(cells[n] for n in used), strict=True)], ("split", "evidence"))


def decision_table(advice: Advice, dash: str = "-") -> Table:
    """The batch sizes that were compared."""
    chosen, easier = advice.chosen, advice.data.provisional_goal
    marked = f"; {count(chosen.batch_size)} is recommended" if chosen is not None else ""
    if chosen is None and easier is not None:
        marked = f" and by {goal_of(easier)}, which is not the goal"
    title = f"Batch sizes compared, each at the learning rate that suits it{marked}; good: within 5 % of the best"
    if any(c.p_lost >= LEAST_LOST for c in advice.candidates):
        title += "; lost: diverges, or does not get there within the task's budget"
    return candidates_table(advice, decision_columns(advice, dash), title)


def detail_table(advice: Advice, dash: str = "-") -> Table:
    """Steps, examples, seconds per step and cost of the same batch sizes."""
    title = "Seconds per step" if by_loss(advice) else "What the time to the goal is made of"
    table = candidates_table(advice, detail_columns(advice, dash), title)
    return table if len(table.headings) > 1 else table._replace(rows=[])


# --- runs ---


def trials_table(advice: Advice, dash: str = "-") -> Table:
    """Every training run in its order."""
    headings = ["batch size", "learning rate", "seed", "role", "outcome", "lowest loss", "examples used"]
    to_goal = not by_loss(advice)
    rows = []
    for t in advice.data.trials:
        row = [count(t.batch_size), rate(t.learning_rate), str(t.seed), ROLES.get(t.role, plain(t.role))]
        row += [OUTCOMES.get(t.outcome, plain(t.outcome)), *([reached_cell(t)] if to_goal else [])]
        rows.append([*row, ABSENT if t.lowest_loss is None else number(t.lowest_loss), count(t.examples)])
    if to_goal:
        headings.insert(5, "examples to goal")
    return Table("Training runs, in their order (> a lower bound)", headings, rows, ("role", "outcome"))


def reached_cell(trial: Tried) -> str:
    """Examples at the crossing, or the bound."""
    if trial.reached is not None:
        return number(trial.reached)
    return ABSENT if trial.outcome in ("diverged", "failed") else f"> {number(trial.bound)}"


def predicted_how(advice: Advice) -> str:
    """What a prediction for devices that were not measured counts."""
    counted = advice.data.scaling is not None
    return "predicted, averaging included" if counted else "predicted, without communication"


def pareto_table(advice: Advice) -> Table:
    """Time against cost over device counts."""
    money = "cost" if advice.question.price is not None else "device hours"
    rows = [
        [
            count(p.devices),
            count(p.batch_size),
            seconds(p.seconds_to_goal),
            number(p.cost),
            predicted_how(advice) if p.predicted else "as measured",
        ]
        for p in advice.pareto
    ]
    bound = "" if advice.data.scaling is not None else "; several devices: a lower bound"
    title = f"Time against cost: nothing is both faster and cheaper (estimates{bound})"
    return Table(title, ["devices", "batch size", "time to goal", money, "how"], rows, ("how",))


# --- how it was measured ---


def facts_of(advice: Advice, dash: str = "-") -> list[tuple[str, str]]:
    """Every fact with its name, in reading order."""
    data, c = advice.data, advice.data.conditions
    facts = [
        ("Asked for", asked(advice)),
        ("Own point", own_of(advice)),
        ("Evidence", plain(advice.evidence)),
        ("Law", law_of(advice, dash)),
        ("Limits", limits_of(advice, dash)),
        ("Noise scale", cell(data.noise, dash) if known(data.noise) else "not measured"),
        ("Learning rate", rates_of(advice.learning_rate_curve, dash)),
        ("Conditions", conditions_of(c)),
        ("Engine", engine_of(c.engine)),
        ("Versions", versions_of(c)),
        ("Spent", spent_on(advice)),
    ]
    return [*facts, *([("Measured at", f"{plain(data.measured_at[:19])} (UTC)")] if data.measured_at else [])]


def asked(advice: Advice) -> str:
    """The question."""
    q = advice.question
    what = OBJECTIVE_WORDS.get(q.objective, plain(q.objective))
    to = f"the lowest validation loss in {allowance(advice)}" if by_loss(advice) else goal_words(advice, what)
    parts = [to, f"{count(q.devices)} device{'' if q.devices == 1 else 's'}", f"budget {q.budget:g} reference runs"]
    parts += [f"price {q.price:g} for a device for an hour"] if q.price is not None else []
    parts += [f"memory limit {size_of(q.memory_limit)}"] if q.memory_limit is not None else []
    return ", ".join([*parts, f"seed {q.seed}"])


def goal_words(advice: Advice, what: str) -> str:
    """The least time to validation loss at most 0.36."""
    return f"{what} to {goal_of(advice.data.goal) if advice.data.goal is not None else 'the goal'}"


def own_of(advice: Advice) -> str:
    """Where the user trains, and the unit of the budget."""
    data = advice.data
    took = "took" if data.reference_reached else "did not get to the goal within"
    point = f"batch size {count(data.own_batch_size)}, learning rate {rate(data.own_learning_rate)}"
    return f"{point}; its run, the reference run, {took} {count(data.reference_examples)} examples"


def law_of(advice: Advice, dash: str = "-") -> str:
    """The law's parameters and how well it holds."""
    if not known(advice.critical_batch_size):
        return (
            "not used: the loss in a given time was asked for"
            if by_loss(advice)
            else "not fitted: no run reached a goal"
        )
    said = f"S(B) = S_min (1 + B_crit / B) with B_crit = {cell(advice.critical_batch_size, dash)} examples"
    said += f", S_min = {cell(advice.s_min, dash)} steps" if known(advice.s_min) else ""
    if advice.law_misfit is None:
        return said
    off = f"{100 * advice.law_misfit:.0f} %"
    verdict = "it holds" if advice.law_holds else "it does not hold, and measured points are believed over it"
    return f"{said}; points lie typically {off} off: {verdict}"


def limits_of(advice: Advice, dash: str = "-") -> str:
    """The three limits."""
    largest, knee = advice.largest_micro_batch_size, advice.knee
    ceiling = f"largest micro-batch {count(largest)}" if largest is not None else "largest micro-batch not measured"
    found = f"throughput knee {size_interval(knee, dash)}" if knee.estimate is not None else "no throughput knee found"
    crit = advice.critical_batch_size
    return f"{ceiling}, {found}, critical batch size {cell(crit, dash) if known(crit) else 'not known'}"


def rates_of(curve: LearningRateCurve | None, dash: str = "-") -> str:
    """What the best learning rate does with batch size."""
    if curve is None:
        return "how it moves with batch size was not fitted"
    ordered = sorted(curve.probabilities.items(), key=lambda pair: -pair[1])
    shares = list_of(f"{plain(name)} {chance(p)}" for name, p in ordered if p >= 0.005)
    ends = f"rise {cell(curve.rise, dash)}, fall {cell(curve.fall, dash)}"
    return f"with batch size it is {plain(curve.shape)} (probabilities: {shares}); {ends}"


def spent_on(advice: Advice) -> str:
    """What the training runs took."""
    s = advice.spent
    return (
        f"{count(s.trials)} training runs, {count(s.examples)} examples, {count(s.steps)} steps: "
        f"{number(s.reference_runs)} reference runs; {seconds(s.seconds)} (a clock reading, not a timing)"
    )


def notes_of(advice: Advice) -> list[str]:
    """The notes of the answer and of the data, each once."""
    return list(dict.fromkeys([*advice.notes, *advice.data.notes]))


def methods_of(advice: Advice) -> dict[str, list[str]]:
    """How each quantity's intervals were made: method -> the quantities that used it."""
    rates = advice.learning_rate_curve.learning_rates if advice.learning_rate_curve is not None else ()
    quantities: dict[str, Sequence[Measured | None]] = {
        "seconds to goal": [c.seconds_to_goal for c in advice.candidates],
        "steps to goal": [c.steps_to_goal for c in advice.candidates],
        "seconds per step": [c.seconds_per_step for c in advice.candidates],
        "energy": [c.joules for c in advice.candidates],
        "lowest loss": [c.lowest_loss for c in advice.candidates],
        "over own point": [c.over_own for c in advice.candidates],
        "critical batch size": [advice.critical_batch_size],
        "knee": [advice.knee],
        "noise scale": [advice.data.noise],
        "learning rates": rates,
    }
    methods: dict[str, list[str]] = {}
    for name, values in quantities.items():
        for m in values:
            if m is not None and m.interval and name not in methods.setdefault(m.interval, []):
                methods[m.interval].append(name)
    return methods
