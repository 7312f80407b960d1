"""Do small batches end in flatter minima, in words? Three to six paragraphs, each number with its interval.

What each measure of flatness says, held and tuned, and whether the measures agree; what else could make the difference
(learning rate, training loss, scale); how far the weights moved; how the distance grew; what causal runs show.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from batchscope.analysis import flatness_measures as name
from batchscope.analysis.causes import LOWEST, NOISE, WARM, side_of
from batchscope.records import CauseRow, Claim, FlatnessRow, SharpnessResult
from batchscope.report.advice_numbers import times
from batchscope.report.noise_words import known
from batchscope.report.words import VERDICT_COUNTS, count, list_of, measured, number, plain

POLICIES = {"held": "at the held learning rate", "tuned": "with the learning rate tuned"}
SAID = 3  # measures that a sentence gives with their ratios; the table has all (a guess at what can be read)
DIFFERENT = 1.05  # ratio from which two learning rates or losses are called different: the claims' band
FAR_BELOW = 0.25  # of the edge of stability: a run there is not held by it (a guess)
NAMED = "Holm-corrected interval "
VERDICTS = ("holds", "not resolved", "does not hold")


def worded(result: SharpnessResult) -> SharpnessResult:
    """The result with its `sentences`."""
    return dataclasses.replace(result, sentences=tuple(sentences_of(result)))


def sentences_of(result: SharpnessResult) -> list[str]:
    """The answer, a paragraph each."""
    paragraphs = [
        *(flat_sentences(result, policy) for policy in policies_in(result)),
        files_sentence(result),
        confounders_sentence(result),
        distance_sentences(result),
        growth_sentence(result),
        causes_sentence(result),
    ]
    return [p for p in paragraphs if p]


# --- how things are named ---


def policies_in(result: SharpnessResult) -> list[str]:
    """The policies of the rows that have a batch size."""
    return list(dict.fromkeys(r.policy for r in result.rows if r.batch_size is not None))


def policy_words(policy: str) -> str:
    """`at the held learning rate`."""
    return POLICIES.get(policy, plain(policy))


def capital(text: str) -> str:
    """With a capital letter."""
    return text[:1].upper() + text[1:]


def claims_of(result: SharpnessResult, number: int, policy: str) -> list[Claim]:
    """Judgements of a claim in a policy, by measure."""
    return [c for c in result.claims if (c.number, c.policy) == (number, policy)]


def ends_of(result: SharpnessResult, policy: str) -> list[FlatnessRow]:
    """The rows of the smallest and the largest batch size."""
    rows = sorted((r for r in result.rows if r.policy == policy and r.batch_size is not None), key=_size)
    return [rows[0], rows[-1]] if len(rows) > 1 else rows


def _size(row: FlatnessRow) -> int:
    return row.batch_size or 0


def value_of(row: FlatnessRow, measure: str) -> float | None:
    """The estimate of a measure."""
    m = row.measures.get(measure)
    return None if m is None else m.estimate


def differ(a: float | None, b: float | None) -> bool:
    """Whether two positive numbers lie further apart than the band."""
    return a is not None and b is not None and min(a, b) > 0 and max(a, b) / min(a, b) > DIFFERENT


def ratio_words(claim: Claim, named: str = "") -> str:
    """`largest eigenvalue 3.2 times (2.1 to 4.5)`."""
    return f"{plain(claim.effect.what)} {times(claim.effect.ratio, '', named)}"


# --- flatness ---


def flat_sentences(result: SharpnessResult, policy: str) -> str:
    """Claim 10 in one policy, by all of its measures."""
    claims, ends = claims_of(result, 10, policy), ends_of(result, policy)
    if not claims or not ends:
        return ""
    if len(ends) < 2:
        return (
            f"{capital(policy_words(policy))} only batch size {count(ends[0].batch_size)} was measured: there is "
            "nothing to compare it with."
        )
    small, large = (count(r.batch_size) for r in ends)
    groups = {v: [c for c in claims if c.verdict == v] for v in VERDICTS}
    n, holds = len(claims), len(groups["holds"])
    said = f"{capital(policy_words(policy))}, batch size {large} {sharper_words(small, holds, n)}"
    parts: list[str] = []
    for v, how in SIDES.items():
        parts += [f"{how} {told_ratios(groups[v], '' if parts else NAMED)}"] if groups[v] else []
    both = groups["holds"] and groups["does not hold"]
    disagree = " The measures disagree with each other: which one is meant has to be said." if both else ""
    return f"{said}: {'; '.join(parts)} (ratios of the largest to the smallest batch size).{disagree}"


def sharper_words(small: str, holds: int, n: int) -> str:
    """By how many of n measures larger is sharper."""
    if holds == 0:
        return f"is not shown to end in sharper minima than {small} by any of {count(n)} measures"
    by = "the one measure that was taken" if n == 1 else f"all {count(n)} measures" if holds == n else ""
    return f"ends in sharper minima than {small} by {by or f'{count(holds)} of {count(n)} measures'}"


SIDES = {"holds": "sharper by", "does not hold": "not sharper by", "not resolved": "not resolved by"}


def told_ratios(claims: Sequence[Claim], named: str = "") -> str:
    """Up to SAID measures with their ratios, the others counted."""
    judged = sorted((c for c in claims if c.effect.ratio.estimate is not None), key=telling)
    if not judged:
        return list_of(plain(c.effect.what) for c in claims)
    shown = [ratio_words(c, named if k == 0 else "") for k, c in enumerate(judged[:SAID])]
    more = len(claims) - len(shown)
    return list_of([*shown, *([f"{count(more)} more"] if more else [])])


def telling(claim: Claim) -> int:
    """Where a measure stands in a sentence: one of each kind before a second of one kind."""
    first = (name.box_name("full", 1e-3), name.LARGEST, name.ADAPTIVE, name.TRACE)
    return first.index(claim.effect.what) if claim.effect.what in first else len(first)


def files_sentence(result: SharpnessResult) -> str:
    """What weights that came as files can say."""
    rows = [r for r in result.rows if r.batch_size is None]
    if not rows:
        return ""
    boxes = [m for m in rows[0].measures if m.startswith("sharpness")]
    measures = (*boxes[:1], name.LARGEST, name.TRACE, name.ADAPTIVE)
    found = [m for m in measures if all(known(r.measures.get(m)) for r in rows)][:SAID]
    said = f"Weights were measured as they came, {list_of(plain(r.label) for r in rows)}"
    parts = [f"{m} {list_of(measured(r.measures[m], dash='–') for r in rows)}" for m in found]
    values = f": {'; '.join(parts)}" if parts else ""
    return (
        f"{said}{values}. Their batch sizes and seeds are not known, so no claim is judged, and an interval is its "
        "estimator's, not that of other seeds."
    )


# --- objections ---


def confounders_sentence(result: SharpnessResult) -> str:
    """What else than the batch size could make minima look sharp."""
    parts = [rate_words(result), loss_words(result), scale_words(result)]
    return " ".join(p for p in parts if p)


def rate_words(result: SharpnessResult) -> str:
    """Different learning rates make the largest eigenvalue a meter of them."""
    for policy in policies_in(result):
        ends = ends_of(result, policy)
        rates = [r.learning_rate for r in ends]
        if len(ends) < 2 or not differ(*rates):
            continue
        pair = [value_of(r, name.LARGEST_RATE) for r in ends]
        held = "; compare the held policy, where it is the same" if "held" in policies_in(result) else ""
        said = (
            f"{capital(policy_words(policy))} the rate is not the same, {number(rates[0])} at batch size "
            f"{count(ends[0].batch_size)} and {number(rates[1])} at {count(ends[1].batch_size)}"
        )
        known = [v for v in pair if v is not None]
        here = f", here {number(known[0])} and {number(known[1])} / learning rate" if len(known) == len(pair) else ""
        if here and max(known) < FAR_BELOW * name.EDGE:
            return (
                f"{said}, but the largest eigenvalue{here}, is far below {name.EDGE:g} / learning rate, where gradient "
                f"descent without momentum would hold it: it is no meter of the rate{held}."
            )
        return (
            f"{said}: at its edge of stability gradient descent without momentum holds the largest eigenvalue near "
            f"{name.EDGE:g} / learning rate{here}, so that a run which is there measures its learning rate{held}."
        )
    return ""


def loss_words(result: SharpnessResult) -> str:
    """Different training losses at the measured weights."""
    parts = []
    for policy in policies_in(result):
        ends = ends_of(result, policy)
        losses = [value_of(r, name.TRAIN_LOSS) for r in ends]
        if len(ends) == 2 and differ(*losses):
            parts.append(f"{number(losses[0])} and {number(losses[1])} {policy_words(policy)}")
    if not parts:
        return ""
    return (
        f"The training loss at the measured weights differs too, {list_of(parts)}: the curvature of cross-entropy "
        "falls as it saturates, so that part of a difference may be how far each was trained."
    )


def scale_words(result: SharpnessResult) -> str:
    """Which measures survive rescaling, and what they say."""
    if not any(known(r.measures.get(m)) for r in result.rows for m in name.SCALE_FREE):
        return (
            "The box, the eigenvalues and the trace change where a network is rescaled without computing anything "
            "else; the adaptive measures, which do not, were not taken."
        )
    claims = [c for c in result.claims if c.number == 10 and c.effect.what in name.SCALE_FREE]
    said = (
        "The box, the eigenvalues and the trace change where a network is rescaled without computing anything else; "
        "adaptive sharpness and the adaptive eigenvalue do not"
    )
    if not claims:
        return f"{said}."
    counted = [(sum(c.verdict == v for c in claims), verb) for v, verb in VERDICT_COUNTS]
    fell = list_of(f"{count(n)} {verb}" for n, verb in counted if n)
    return f"{said}: of their {count(len(claims))} judgements on “larger batches end in sharper minima”, {fell}."


# --- distance ---


def distance_sentences(result: SharpnessResult) -> str:
    """Claim 6 by each distance, in every policy."""
    policies = list(dict.fromkeys(c.policy for c in result.claims if c.number == 6))
    said = []
    for policy in policies:
        claims = [c for c in claims_of(result, 6, policy) if c.effect.ratio.estimate is not None]
        if not claims:
            continue
        parts = [
            f"{times(c.effect.ratio, '', '' if said or k else NAMED)} at {place_words(c)}" for k, c in enumerate(claims)
        ]
        what = (
            "that ratio is"
            if said
            else "the largest batch size moved the weights, as a ratio of the smallest one's distance from the start,"
        )
        said.append(f"{capital(policy_words(policy))} {what} {list_of(parts)}: {verdicts_words(claims)}.")
    return " ".join(said)


def place_words(claim: Claim) -> str:
    """`equal epochs`, `the measured weights`."""
    return plain(claim.effect.what).removeprefix("distance at ")


def verdicts_words(claims: Sequence[Claim]) -> str:
    """`“nearer to the start” holds at equal epochs and is not resolved at the measured weights`."""
    verbs = {"holds": "holds", "does not hold": "does not hold", "not resolved": "is not resolved"}
    parts = []
    for v, verb in verbs.items():
        places = [place_words(c) for c in claims if c.verdict == v]
        parts += [f"{verb} at {list_of(places)}"] if places else []
    return f"“nearer to the start” {list_of(parts)}"


def growth_sentence(result: SharpnessResult) -> str:
    """Whether the distance grows like log steps, and what is not known without traces."""
    if not result.growth:
        if result.data.study_id is None:
            return ""
        return "Distances at equal epochs, equal steps and equal loss are not known: no trace of the study was at hand."
    line = shares([g.explained for g in result.growth])
    power = shares([g.explained_by_power for g in result.growth])
    exponent = span([g.exponent for g in result.growth])
    better = sum(g.explained > g.explained_by_power for g in result.growth)
    return (
        f"Along the runs a line in the logarithm of the steps explains {line} of the distance's variance, a power law "
        f"of the steps {power} of it (exponent {exponent}); the line explains more in {count(better)} of "
        f"{count(len(result.growth))} rows."
    )


def shares(values: Iterable[float]) -> str:
    """`91 to 99 %`."""
    return f"{span_of([f'{100 * v:.0f}' for v in sorted(values)])} %"


def span(values: Iterable[float]) -> str:
    """`0.91`, `0.91 to 0.99`."""
    return span_of([f"{v:.2f}" for v in sorted(values)])


def span_of(texts: Sequence[str]) -> str:
    """The first and the last text, once where they are equal."""
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"


# --- causes ---

SOON = 1.0  # epochs after a switch, before which weights are still called those of before it (a guess)
TOLD = {name.LARGEST: "largest eigenvalue", LOWEST: "lowest validation loss"}


def causes_sentence(result: SharpnessResult) -> str:
    """What training came to that went on otherwise, against training that nothing interrupted."""
    warm = [r for r in result.causes if r.kind == WARM]
    paths = sorted({(r.from_batch_size, r.batch_size) for r in warm})
    parts = [[r for r in warm if (r.from_batch_size, r.batch_size) == path] for path in paths]
    said = [warm_sentence(rows, first=k == 0) for k, rows in enumerate(parts)]
    said += [noise_sentence(r, first=not warm) for r in result.causes if r.kind == NOISE]
    if not any(r.ratios for r in result.causes):
        return " ".join(said)
    longer = " What was switched got a fresh optimiser and a whole budget: it could train longer." if warm else ""
    return f"{' '.join(said)} Intervals of causal runs are not corrected for their number.{longer}"


def warm_sentence(rows: Sequence[CauseRow], first: bool = False) -> str:
    """From one batch size on at another: the earliest switch with its ratios, the later ones by their sides."""
    early, *later = sorted(rows, key=lambda r: r.share)
    start, size = count(early.from_batch_size), count(early.batch_size)
    said = (
        f"Switched from batch size {start} to {size} after {100 * early.share:.0f} % of the way to the lowest "
        f"validation loss of {start}, training ended {against_words(early, size, first)}"
    )
    told = [m for m in early.ratios if all(m in r.ratios for r in later)]
    if later and told:
        sides = {m: sides_words([side_of(r.ratios[m]) for r in later]) for m in told}
        alike = [f"{list_of(short_name(m) for m in told if sides[m] == s)} {s}" for s in dict.fromkeys(sides.values())]
        said += f"; switched after {percents(r.share for r in later)} of that way, {'; '.join(alike)}"
    stayed = [r.share for r in rows if r.epochs_after < SOON]
    near = (
        f" Switched after {percents(stayed)} it was measured within {SOON:g} epoch of the switch, on average: next to "
        f"batch size {start}'s own weights, which shows nothing of {size}."
    )
    return f"{said}.{near if stayed else ''}"


def noise_sentence(row: CauseRow, first: bool = False) -> str:
    """A large batch with the noise of a small one."""
    start, size = count(row.from_batch_size), count(row.batch_size)
    return f"Batch size {size} with the gradient noise of {start} injected ended {against_words(row, size, first)}."


def against_words(row: CauseRow, size: str, first: bool = False) -> str:
    """`, against 64 uninterrupted, with the largest eigenvalue lower, 0.52 times (95 % interval 0.40 to 0.67)`."""
    if not row.ratios:
        values = [f"{short_name(m)} {measured(row.measures[m], dash='–')}" for m in TOLD if known(row.measures.get(m))]
        end = f"at {list_of(values)}" if values else "without a finite value"
        return f"{end}; no uninterrupted run of {size} with the same seed is known to compare it with"
    named = "95 % interval " if first else ""
    parts = [
        f"{short_name(m)} {side_of(ratio)}, {times(ratio, '', '' if k else named)}"
        for k, (m, ratio) in enumerate(row.ratios.items())
    ]
    lost = "" if LOWEST in row.ratios else "; lowest validation losses cannot be compared"
    return f"with its {list_of(parts)}, against {size} uninterrupted{lost}"


def short_name(measure: str) -> str:
    """As a sentence names it."""
    return TOLD.get(measure, "box sharpness")


def percents(shares_: Iterable[float]) -> str:
    """`25 and 50 %`."""
    return f"{list_of(f'{100 * s:.0f}' for s in sorted(shares_))} %"


def sides_words(sides: Sequence[str]) -> str:
    """The sides in order, once where they agree."""
    return sides[0] if len(set(sides)) == 1 else list_of(sides)
