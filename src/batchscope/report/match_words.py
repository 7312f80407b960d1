"""What did `match` find, in words? The answer in a sentence, what stands behind it, and why each row got its verdict.

An excess is a share of the baseline's lowest validation loss; it is told in percent. The bound is always the one-sided
95 % upper one. What can be pasted is in `match_snippet`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from batchscope.analysis.step_time import inverse
from batchscope.records import NO_REMEDY, VERDICTS, Gap, Largest, MatchResult, MatchRow, Measured
from batchscope.report.advice_numbers import times
from batchscope.report.match_snippet import configuration_of
from batchscope.report.words import count, list_of, number, plain, sentence

RETUNED = "the learning rate re-tuned alone"  # NO_REMEDY in a sentence
NAMED = "95 % interval "  # what a paragraph's first bracket says
FEWER, AS_MANY = "fewer steps to the baseline's loss", "as many steps to the baseline's loss"
SOME = 1.05  # times fewer steps, from which it looks so (a guess)
GROWN = 0.9  # mean batch / batch size, below which it is said to have grown
FEW = 4  # names that a sentence gives one by one


def worded(result: MatchResult) -> MatchResult:
    """The result with its `answer`, its `configuration`, and a reason in every row that has none."""

    def told(row: MatchRow) -> MatchRow:
        return dataclasses.replace(row, why=row.why or why_of(row, result))

    return dataclasses.replace(
        result,
        answer=answer_sentence(result),
        configuration=configuration_of(result),
        baseline=told(result.baseline),
        untuned=tuple(map(told, result.untuned)),
        rows=tuple(map(told, result.rows)),
    )


def sentences_of(result: MatchResult) -> list[str]:
    """The answer, and what a reader has to know beside it, a paragraph each."""
    more = (gaps_sentence, verdicts_sentence, beyond_sentence, dropped_sentence, refused_sentence, race_sentence)
    return [s for s in (result.answer or answer_sentence(result), *(say(result) for say in more)) if s]


# --- how things are named ---


def name_of(remedy: str) -> str:
    """A remedy in a sentence."""
    return RETUNED if remedy == NO_REMEDY else plain(remedy)


def percent(share: float) -> str:
    """A share in percent without its unit: 38, 4.1, 0.43."""
    value = 100 * share
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.1f}" if abs(value) >= 1 else f"{value:.2f}"


def finite(value: float | None) -> float | None:
    """The number, None where there is none or it is not finite."""
    return value if value is not None and math.isfinite(value) else None


def excess_words(m: Measured, named: str = "") -> str:
    """`0.43 % (-0.10 to 0.96 %)`; `not known` without an estimate."""
    estimate, low, high = map(finite, (m.estimate, m.low, m.high))
    if estimate is None:
        return "not known" if low is None else f"at least {percent(low)} %"
    if low is None or high is None:
        return f"{percent(estimate)} % (without an interval)"
    return f"{percent(estimate)} % ({named}{percent(low)} to {percent(high)} %)"


def loss_words(m: Measured, named: str = "") -> str:
    """A loss to four digits, as excesses of less than a percent have to show: `0.1206 (0.1198 to 0.1214)`."""
    estimate, low, high = map(finite, (m.estimate, m.low, m.high))
    bounds = f" ({named}{number(low, 4)} to {number(high, 4)})" if low is not None and high is not None else ""
    return f"{number(estimate, 4)}{bounds}" if estimate is not None else "not known"


def larger_words(batch_size: int, result: MatchResult) -> str:
    """`batch size 512 (16x)`."""
    return f"batch size {count(batch_size)} ({number(batch_size / result.baseline.batch_size, 2)}x)"


def devices_words(n: int) -> str:
    """`one device`, `4 devices`."""
    return "one device" if n == 1 else f"{count(n)} devices"


def seeds_words(n: int) -> str:
    """`1 seed`, `5 seeds`."""
    return f"{count(n)} seed{'' if n == 1 else 's'}"


def confirmed_rows(result: MatchResult, batch_size: int | None = None) -> list[MatchRow]:
    """The rows that fresh seeds confirmed, best first; of one batch size, or of all."""
    return [r for r in result.rows if r.role == "confirmed" and batch_size in (None, r.batch_size)]


def sizes_of(result: MatchResult) -> list[int]:
    """The large batch sizes in the answer, smallest first."""
    rows = (*result.untuned, *result.rows)
    return sorted({r.batch_size for r in rows} | {c.batch_size for c in result.cannot_apply})


# --- the answer ---


def answer_sentence(result: MatchResult) -> str:
    """What matches and what it buys; or that nothing does, and what comes closest."""
    return match_sentence(result, result.largest) if result.largest is not None else no_match_sentence(result)


def match_sentence(result: MatchResult, largest: Largest) -> str:
    """The largest batch size that matches."""
    row = next((r for r in confirmed_rows(result, largest.batch_size) if r.remedy == largest.remedy), None)
    own = count(result.baseline.batch_size)
    said = f"At {larger_words(largest.batch_size, result)}, {name_of(largest.remedy)} matches batch size {own}"
    if row is not None:
        base = loss_words(result.baseline.min_validation_loss)
        loss = loss_words(row.min_validation_loss, NAMED)
        said += (
            f": lowest validation loss {loss} against {base}, excess {excess_words(row.excess)}{bound_words(row, '; ')}"
        )
    return f"{said}; {gain_words(largest)}."


def bound_words(row: MatchRow, before: str = "") -> str:
    """`bound 0.96 %, below the 1.0 % allowed`; nothing without a bound."""
    bound, room = finite(row.bound), finite(row.room)
    if bound is None or room is None:
        return ""
    side = "below" if bound < room else "not below"
    return f"{before}bound {percent(bound)} %, {side} the {percent(room)} % allowed"


def gain_words(largest: Largest) -> str:
    """What it saves in steps, and in seconds on each number of devices."""
    steps = fewer_words(largest.fewer_steps)
    speeds = [f"{faster_words(m)} on {devices_words(n)}" for n, m in sorted(largest.faster.items()) if known(m)]
    seconds = f"it is there {list_of(speeds)}" if speeds else "seconds were not measured"
    return f"{steps}, {'and ' if speeds else 'but '}{seconds}"


def known(m: Measured) -> bool:
    """Whether there is a finite estimate above 0, as ratios have."""
    return (finite(m.estimate) or 0.0) > 0


def fewer_words(ratio: Measured) -> str:
    """`it takes 14.8 times fewer steps to the baseline's loss (12 to 18)`."""
    if not known(ratio):
        low, high = ((finite(v) or 0.0) for v in (ratio.low, ratio.high))
        side, end = ("at least", low) if low > 1 else ("at most", high)
        few = f"it takes {side} {number(end)} times {FEWER}, as far as is known" if end > 1 else ""
        return few or "how many steps it saves is not known"
    if (ratio.estimate or 0.0) >= 1:
        return f"it takes {times(ratio, FEWER)}"
    return f"it takes {times(inverse(ratio, 1.0), AS_MANY)}"


def faster_words(ratio: Measured) -> str:
    """`5.1 times as fast (4.4 to 5.9)`; undecided where the interval holds 1."""
    if (ratio.estimate or 0.0) < 1:
        said, decided = times(inverse(ratio, 1.0), "as slow"), ratio.high is not None and ratio.high < 1
    else:
        said, decided = times(ratio, "as fast"), ratio.low is not None and ratio.low > 1
    return said if decided else f"not clearly faster or slower, {said},"


def no_match_sentence(result: MatchResult) -> str:
    """That nothing matches, what comes closest, and whether more seeds may settle it."""
    own, sizes = count(result.baseline.batch_size), list_of(map(count, sizes_of(result)))
    none = f"No remedy was found to match batch size {own} at {f'batch size {sizes}' if sizes else 'any batch size'}"
    best = closest(result)
    if best is None:
        lost = "of every remedy that was run with fresh seeds, some diverged or failed"
        return f"{none}: {lost if confirmed_rows(result, None) else 'none was run with fresh seeds'}."
    at = f"{name_of(best.remedy)} at {larger_words(best.batch_size, result)}"
    if best.verdict == "matches":
        return (
            f"No remedy was found to match batch size {own} in fewer steps at batch size {sizes}: {at} matches, excess "
            f"{excess_words(best.excess, NAMED)}{bound_words(best, '; ')}, but {spared_words(best)}."
        )
    if best.seeds < 2:
        return (
            f"{none}: of one seed there is no interval, so that nothing can match; the lowest excess is that of {at}, "
            f"{excess_words(best.excess)}; more seeds may settle it."
        )
    narrows = ", which narrows the gap" if best.verdict == "narrows" else ""
    bound = bound_words(best, "; ")
    return f"{none}: {at} comes closest, excess {excess_words(best.excess, NAMED)}{bound}{narrows}; {more_words(best)}."


def closest(result: MatchResult) -> MatchRow | None:
    """The confirmed row with the lowest bound, or where none has one, with the lowest excess; of those that save steps.

    As far as it is known; where none does, of all.
    """
    rows = [r for r in confirmed_rows(result) if finite(r.excess.estimate) is not None]
    rows = [r for r in rows if r.saves_steps or may_save(r)] or rows
    return min(rows, key=nearness, default=None)


def may_save(row: MatchRow) -> bool:
    """Whether its steps to the baseline's loss look fewer than the baseline's, be it not known for sure."""
    return row.fewer_steps is None or (row.fewer_steps.estimate or 0.0) > SOME


def nearness(row: MatchRow) -> tuple[float, float, int]:
    """By bound, then by excess, then the larger batch."""
    bound, excess = finite(row.bound), finite(row.excess.estimate)
    return (math.inf if bound is None else bound, math.inf if excess is None else excess, -row.batch_size)


def spared_words(row: MatchRow) -> str:
    """That a row saves no steps that are known of, and how large its batches were where they grow."""
    grown = ""
    if row.steps and row.examples / row.steps < GROWN * row.batch_size:
        grown = f": its batches had {number(row.examples / row.steps, 2)} examples in the mean"
    ratio = row.fewer_steps
    steps = fewer_words(ratio) if ratio is not None else "how many steps it saves is not known"
    return f"it is not shown to save steps{grown} ({steps.removeprefix('it takes ')})"


def more_words(row: MatchRow) -> str:
    """Whether more seeds may turn the verdict."""
    if row.resolved:
        return "more seeds would hardly change that"
    if row.seeds_wanted is not None and row.seeds_wanted > row.seeds:
        return f"more seeds may settle it, about {count(row.seeds_wanted)} instead of {count(row.seeds)}"
    return "more seeds may settle it"


# --- beside the answer ---


def gaps_sentence(result: MatchResult) -> str:
    """What there is to close, without any remedy."""
    seen = [g for g in result.gaps if g.exists]
    parts = [gap_words(g, result) for g in result.gaps]
    if not parts:
        return ""
    what = "With the baseline's learning rate and no remedy, the excess is"
    room = "" if seen else "; a gap that a remedy could close was not seen"
    return f"{what} {list_of(parts)}{room}."


def gap_words(gap: Gap, result: MatchResult) -> str:
    """`38 % (35 to 41 %) at batch size 512`, or that it diverged."""
    row = next((r for r in result.untuned if r.batch_size == gap.batch_size), None)
    if finite(gap.untuned.estimate) is None and row is not None and row.diverged:
        return f"not finite at batch size {count(gap.batch_size)} ({row.diverged} of {row.seeds} seeds diverged)"
    return f"{excess_words(gap.untuned)} at batch size {count(gap.batch_size)}"


def verdicts_sentence(result: MatchResult) -> str:
    """How many remedies match at each batch size, by name where they are few."""
    parts = []
    for b in sizes_of(result):
        rows = confirmed_rows(result, b)
        if rows:
            counts = [(v, [r for r in rows if r.verdict == v]) for v in VERDICTS]
            fell = list_of(f"{count(len(some))} {verb_of(v, len(some))}" for v, some in counts if some)
            parts.append(f"at batch size {count(b)}, {fell}{matching_words(rows)}")
    return sentence(f"Of the remedies run with fresh seeds: {'; '.join(parts)}") if parts else ""


def verb_of(verdict: str, n: int) -> str:
    """A verdict as the verb of n remedies."""
    one, several = {
        "matches": ("matches", "match"),
        "narrows": ("narrows the gap", "narrow the gap"),
        "does not": ("does neither", "do neither"),
    }.get(verdict, (verdict, verdict))
    return one if n == 1 else several


def matching_words(rows: Sequence[MatchRow]) -> str:
    """Which ones match, where that is some but not too many."""
    names = [name_of(r.remedy) for r in rows if r.verdict == "matches"]
    return f" ({list_of(names)} match{'es' if len(names) == 1 else ''})" if 0 < len(names) <= FEW else ""


def beyond_sentence(result: MatchResult) -> str:
    """What was found at larger batch sizes."""
    largest = result.largest
    if largest is None:
        return ""
    if largest.tested_beyond is None:
        return f"No batch size beyond {count(largest.batch_size)} was tried: a larger one may match too."
    beyond = count(largest.tested_beyond)
    return f"At batch size {beyond}, the next larger one tried, no remedy was found to match in fewer steps."


def dropped_sentence(result: MatchResult) -> str:
    """How many the races dropped."""
    dropped = [r for r in result.rows if r.verdict == "dropped"]
    if not dropped:
        return ""
    sizes = list(dict.fromkeys(r.batch_size for r in dropped))
    parts = [f"{count(sum(r.batch_size == b for r in dropped))} at batch size {count(b)}" for b in sizes]
    return f"Not confirmed with fresh seeds, as others looked better in the race: {list_of(parts)}."


def refused_sentence(result: MatchResult) -> str:
    """Which remedies cannot be applied to the task."""
    names = list(dict.fromkeys(name_of(c.remedy) for c in result.cannot_apply))
    return f"Not raced, as they cannot be applied: {list_of(names)}." if names else ""


def race_sentence(result: MatchResult) -> str:
    """What the races cost, together; the baseline's own is not one that drops anybody."""
    races = [r for r in result.races if r.batch_size != result.baseline.batch_size]
    used, whole = sum(r.examples for r in races), sum(r.to_the_end for r in races)
    if not whole:
        return ""
    n = sum(r.candidates for r in races)
    said = "The race" if len(races) == 1 else f"The races at {count(len(races))} batch sizes"
    return (
        f"{said} used {100 * used / whole:.0f} % of the examples that it would have taken to run all {count(n)} "
        "candidates to the end."
    )


# --- why a row got its verdict ---


def why_of(row: MatchRow, result: MatchResult) -> str:
    """One sentence on a row."""
    if row.role == "baseline":
        return "The small batch, its learning rate tuned: what has to be matched."
    if row.role == "untuned":
        return "The large batch at the baseline's learning rate, without a remedy: the gap that there is to close."
    if row.verdict == "dropped":
        return dropped_words(row, result)
    if row.diverged:
        return f"{count(row.diverged)} of {seeds_words(row.seeds)} diverged or failed: what may diverge does not match."
    if finite(row.excess.estimate) is None:
        return "No seed ended with a loss to compare."
    if finite(row.bound) is None or finite(row.room) is None:
        return "Of one seed there is no interval, so that it cannot be said to match: more seeds may settle it."
    return verdict_words(row)


def verdict_words(row: MatchRow) -> str:
    """A verdict from the bound, the room and the untuned large batch."""
    bound, room = percent(row.bound or 0.0), percent(row.room or 0.0)
    if row.verdict == "matches":
        but = "" if row.saves_steps or row.fewer_steps is None else f" But {spared_words(row)}."
        return f"With 95 % confidence its excess is below {bound} %; below {room} % counts as a match.{but}"
    reach = f"its excess may be as large as {bound} %, where below {room} % counts as a match; {more_words(row)}."
    if row.verdict == "narrows":
        return f"It ends below the untuned large batch, but {reach}"
    return f"It is not shown to end below the untuned large batch, and {reach}"


def dropped_words(row: MatchRow, result: MatchResult) -> str:
    """At which round of the race a remedy was left behind, and by how much."""
    rounds = [r for r in result.rounds if r.batch_size == row.batch_size and row.remedy in [c.remedy for c in r.raced]]
    if not rounds:
        return "It was not confirmed with fresh seeds."
    last = max(rounds, key=lambda r: r.examples)
    own = min(s for c, s in zip(last.raced, last.scores, strict=True) if c.remedy == row.remedy)
    best = min(last.scores)
    where = f"{count(last.examples)} examples"
    if not math.isfinite(own):
        return f"All its runs diverged or failed within {where} of the race."
    scores = f"lowest validation loss {number(own, 4)} where the best had {number(best, 4)}"
    if row.remedy in [c.remedy for c in last.kept]:
        return f"It came through the race to {where}, {scores}, but only the best were confirmed with fresh seeds."
    return f"Dropped from the race after {where}: {scores}."
