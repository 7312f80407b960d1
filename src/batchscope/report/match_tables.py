"""Which tables stand behind what `match` found? The same for the terminal and the page, a tuple of texts each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from batchscope.analysis.step_time import inverse, scaled
from batchscope.analysis.uncertainty import product
from batchscope.records import NO_REMEDY, MatchResult, MatchRow, Measured
from batchscope.references import REFERENCES
from batchscope.report.match_words import finite, sizes_of
from batchscope.report.noise_words import ABSENT, cell
from batchscope.report.terminal import Content
from batchscope.report.words import count, list_of, number, plain, sentence

PERCENT = 100.0
LOSS_DIGITS = 4
SHOWN = 5  # remedies of which a screen shows what they take
UNTUNED = "untuned, no remedy"
TUNED = "tuned, no remedy"  # NO_REMEDY in a table


def label_of(row: MatchRow) -> str:
    """What a row is called."""
    return {"baseline": "baseline", "untuned": UNTUNED}.get(row.role, remedy_label(row.remedy))


def remedy_label(remedy: str) -> str:
    """A remedy in a table or a legend."""
    return TUNED if remedy == NO_REMEDY else plain(remedy)


def groups_of(result: MatchResult) -> list[tuple[int, list[MatchRow]]]:
    """The rows by batch size: the baseline's first; at each large one the untuned row, then the remedies."""
    groups = [(result.baseline.batch_size, [result.baseline])]
    for b in sizes_of(result):
        rows = [r for r in (*result.untuned, *result.rows) if r.batch_size == b]
        groups += [(b, rows)] if rows else []
    return groups


def screen_tables(result: MatchResult, dash: str = "-") -> list[Content]:
    """What fits a screen, those without rows left out."""
    makes = (quality_table, effort_table, seconds_table)
    tables = [make(rows, b, result, dash) for b, rows in groups_of(result)[1:] for make in makes]
    return [t for t in (*tables, refused_table(result), races_table(result)) if t.cells]


# --- a line for each remedy ---


def rows_headings(result: MatchResult) -> list[str]:
    """Of the page's table: all that is known of each row."""
    tests = [f"test {plain(name)}" for name in tests_in(result)]
    return [*QUALITY, *tests, "reached", *EFFORT, *seconds_headings(result)]


QUALITY = ("remedy", "verdict", "learning rate", "lowest validation loss", "excess (%)", "bound (%)")
OPEN = ", open"  # after a verdict
EFFORT = ("steps to goal", "examples to goal", "step over plain step")


def row_cells(row: MatchRow, result: MatchResult, dash: str = "-") -> list[str]:
    """One row under `rows_headings`."""
    tests = [loss_cell((row.test or {}).get(name), dash) for name in tests_in(result)]
    return [*quality_cells(row, dash), *tests, reached_of(row), *effort_cells(row, result, dash)]


def quality_cells(row: MatchRow, dash: str) -> list[str]:
    """How well it trains, and what follows."""
    return [
        label_of(row),
        verdict_of(row),
        number(row.learning_rate),
        loss_cell(row.min_validation_loss, dash),
        ABSENT if row.role == "baseline" else cell(scaled(row.excess, PERCENT), dash),
        share_cell(row.bound),
    ]


def verdict_of(row: MatchRow) -> str:
    """The verdict, and that it is open where more seeds may turn it into a match."""
    opens = row.verdict in ("narrows", "does not") and not row.resolved
    return f"{row.verdict or ABSENT}{OPEN * opens}"


def effort_cells(row: MatchRow, result: MatchResult, dash: str) -> list[str]:
    """What it takes to the goal."""
    seconds = [cell(row.seconds_to_goal.get(n), dash) for n in devices_in(result)]
    steps = [row.steps_to_goal, row.examples_to_goal, relative_step(row, result)]
    return [*(cell(m, dash) for m in steps), *seconds]


def loss_cell(m: Measured | None, dash: str) -> str:
    """A loss or a metric to four digits: excesses of less than a percent have to be seen in them."""
    estimate, low, high = (None, None, None) if m is None else map(finite, (m.estimate, m.low, m.high))
    if estimate is None or low is None or high is None or low < 0:
        return number(estimate, LOSS_DIGITS) if estimate is not None and low is None and high is None else cell(m, dash)
    return f"{number(estimate, LOSS_DIGITS)} [{number(low, LOSS_DIGITS)}{dash}{number(high, LOSS_DIGITS)}]"


def room_of(rows: Sequence[MatchRow]) -> str:
    """What bounds have to stay below at the rows' batch size, in percent; a dash where nothing was judged."""
    return next((share_cell(r.room) for r in rows if finite(r.room) is not None), ABSENT)


def share_cell(share: float | None) -> str:
    """A share in percent, or a dash."""
    known = finite(share)
    return ABSENT if known is None else number(PERCENT * known)


def reached_of(row: MatchRow) -> str:
    """`5/5`, and how many diverged."""
    if row.role == "race":
        return ABSENT
    return f"{row.reached}/{row.seeds}{f', {row.diverged} diverged' if row.diverged else ''}"


def tests_in(result: MatchResult) -> list[str]:
    """The metrics of the test set, in the baseline's order."""
    rows = (result.baseline, *result.untuned, *result.rows)
    return list(dict.fromkeys(name for r in rows for name in r.test or {}))


def devices_in(result: MatchResult) -> list[int]:
    """Device counts for which some row has seconds."""
    return sorted({n for r in (result.baseline, *result.untuned, *result.rows) for n in r.seconds_to_goal})


def seconds_headings(result: MatchResult) -> list[str]:
    """A column for each device count."""
    return [f"seconds to goal, {count(n)} device{'' if n == 1 else 's'}" for n in devices_in(result)]


def relative_step(row: MatchRow, result: MatchResult) -> Measured | None:
    """Seconds of its step over those of a plain one of the same batch size; None where either was not timed.

    The interval takes the two as independent, though both were corrected by the same reference step: it is too wide
    rather than too narrow.
    """
    plain_rows = [r for r in (*result.untuned, *result.rows) if r.batch_size == row.batch_size]
    timed = (r.seconds_per_step for r in plain_rows if r.remedy == NO_REMEDY and r.seconds_per_step is not None)
    own, base = row.seconds_per_step, next(timed, None)
    if own is None or base is None or not own.estimate or not base.estimate:
        return None
    if row.remedy == NO_REMEDY:
        return Measured(1.0, None, None, own.n, 0, "none: by definition")
    return product(own, inverse(base, 1.0))


def quality_table(rows: Sequence[MatchRow], batch_size: int, result: MatchResult, dash: str = "-") -> Content:
    """For a screen: loss, excess and verdict at one batch size."""
    own = count(result.baseline.batch_size)
    loss = loss_cell(result.baseline.min_validation_loss, dash)
    room = room_of(rows)
    title = (
        f"Batch size {count(batch_size)}: lowest validation loss against batch size {own}'s, {loss}; it matches where "
        f"the bound of the excess is below {room} %"
    )
    return Content(title, QUALITY, [quality_cells(r, dash) for r in rows], ("remedy", "verdict"))


def effort_table(rows: Sequence[MatchRow], batch_size: int, result: MatchResult, dash: str = "-") -> Content:
    """For a screen: steps and examples to the goal of the best remedies at one batch size, the baseline last."""
    shown, less = best_of(rows, result)
    cells = [[label_of(r), reached_of(r), *effort_cells(r, result, dash)[: len(EFFORT)]] for r in shown]
    title = f"Batch size {count(batch_size)}: what it takes to the goal{less}"
    return Content(title, ["remedy", "reached", *EFFORT], cells, ("remedy",))


def seconds_table(rows: Sequence[MatchRow], batch_size: int, result: MatchResult, dash: str = "-") -> Content:
    """For a screen: seconds to the goal of the same ones; without rows where nothing was timed."""
    shown, less = best_of(rows, result)
    timed = [r for r in shown if r.seconds_to_goal] if devices_in(result) else []
    cells = [[label_of(r), *effort_cells(r, result, dash)[len(EFFORT) :]] for r in timed]
    headings = ["remedy", *(h.removeprefix("seconds to goal, ") for h in seconds_headings(result))]
    title = f"Batch size {count(batch_size)}: seconds to the goal{less}"
    return Content(title, headings, cells, ("remedy",))


def best_of(rows: Sequence[MatchRow], result: MatchResult) -> tuple[list[MatchRow], str]:
    """The best few remedies and the baseline, and what is said of those left out."""
    told = [r for r in rows if r.role == "confirmed"]
    less = f" (the best {SHOWN}; all are on the page)" if len(told) > SHOWN else ""
    return [*told[:SHOWN], result.baseline], less


# --- beside the rows ---


def remedies_table(result: MatchResult) -> Content:
    """What each remedy changes, what that costs, and whose idea it is."""
    rows = {r.remedy: r for r in reversed(result.rows)}
    cells = [
        [remedy_label(name), sentence(r.changes) or ABSENT, sentence(r.cost) or ABSENT, papers_of(r.sources) or ABSENT]
        for name, r in reversed(rows.items())
    ]
    headings = ["remedy", "what it changes", "what it costs", "papers"]
    return Content("The remedies that were raced", headings, cells, tuple(headings))


def papers_of(keys: Iterable[str]) -> str:
    """`Goyal et al. 2017 and Krizhevsky 2014`."""
    found = [REFERENCES[key] for key in keys if key in REFERENCES]
    first = [(r.authors.split(",")[0], "," in r.authors, r.year) for r in found]
    return list_of(f"{name}{' et al.' if several else ''} {year}" for name, several, year in first)


def reasons_table(result: MatchResult) -> Content:
    """Why each row got its verdict."""
    cells = [[count(b), label_of(r), verdict_of(r), r.why] for b, rows in groups_of(result) for r in rows]
    headings = ["batch size", "remedy", "verdict", "why"]
    return Content("By batch size, best first", headings, cells, ("remedy", "verdict", "why"))


def refused_table(result: MatchResult) -> Content:
    """Remedies that cannot be applied, with the batch sizes of each reason."""
    sizes: dict[tuple[str, str], list[int]] = {}
    for c in result.cannot_apply:
        sizes.setdefault((c.remedy, c.reason), []).append(c.batch_size)
    cells = [
        [remedy_label(remedy), ", ".join(map(count, at)), sentence(reason)] for (remedy, reason), at in sizes.items()
    ]
    headings = ["remedy", "batch sizes", "why not"]
    return Content("Remedies that cannot be applied, as was known before training", headings, cells, tuple(headings))


def races_table(result: MatchResult) -> Content:
    """What each race cost."""
    cells = [
        [
            count(r.batch_size),
            count(r.candidates),
            count(r.examples),
            count(r.to_the_end),
            number(PERCENT * r.share) if r.to_the_end else ABSENT,
        ]
        for r in result.races
    ]
    headings = ["batch size", "candidates", "examples used", "all to the end", "share (%)"]
    return Content("What the races cost, in examples; a candidate is a remedy at a learning rate", headings, cells)


def rounds_table(result: MatchResult) -> Content:
    """Who was left after each round of the races."""
    cells = []
    for r in result.rounds:
        finite_scores = [(s, c) for s, c in zip(r.scores, r.raced, strict=True) if math.isfinite(s)]
        score, best = min(finite_scores, key=lambda pair: pair[0], default=(math.inf, None))
        who = ABSENT if best is None else f"{remedy_label(best.remedy)}, {number(best.learning_rate)}"
        sizes = [count(r.batch_size), count(r.examples), count(len(r.raced)), count(len(r.kept))]
        cells.append([*sizes, number(score, 4), who])
    headings = ["batch size", "up to examples", "raced", "kept", "best loss so far", "whose, learning rate"]
    return Content("The rounds of the races", headings, cells, ("whose, learning rate",))
