"""Which tables stand behind how flat minima are? The same for the terminal and the page, a tuple of texts each."""

from __future__ import annotations

from collections.abc import Sequence

from batchscope.analysis import flatness_measures as name
from batchscope.analysis.causes import NOISE, UNINTERRUPTED, WARM, side_of
from batchscope.records import BoxSharpness, CauseRow, Claim, FlatnessRow, Measured, PointSharpness, SharpnessResult
from batchscope.report.flatness_facts import measures_in
from batchscope.report.noise_words import ABSENT, cell
from batchscope.report.terminal import Content
from batchscope.report.words import count, number, plain

CURVED = (name.LARGEST, name.SMALLEST, name.TRACE, name.ADAPTIVE, name.ADAPTIVE_EIGENVALUE)
STEPPED = (name.LARGEST_RATE, name.BATCH, name.BATCH_RATE)
ON_SCREEN = 3  # measures of one table that 80 columns hold
SHORTER = {
    name.LARGEST_RATE: "largest eigenvalue x rate",
    name.BATCH_RATE: "batch sharpness x rate",
    name.DISTANCE: "distance from start",
}


def screen_tables(result: SharpnessResult, dash: str = "-") -> list[Content]:
    """What fits a screen, those without rows left out."""
    tables = (*measure_tables(result, dash, ON_SCREEN), distances_table(result, dash), growth_table(result, dash))
    return [t for t in (*tables, *cause_tables(result, dash, ON_SCREEN)) if t.cells]


# --- by batch size ---


def measure_tables(result: SharpnessResult, dash: str = "-", most: int | None = None) -> list[Content]:
    """Boxes, curvature, what a step sees, and where training ended, by batch size and policy.

    `most`: measures of one table; more are parted.
    """
    present = measures_in(result)
    boxes = [m for m in present if m.startswith("sharpness (box")]
    ends = [m for m in present if m not in (*boxes, *CURVED, *STEPPED)]
    tables = (
        ("How much the loss rises in a box around the weights (%), a lower bound of the maximum", boxes),
        ("Curvature of the training loss at the weights", [m for m in CURVED if m in present]),
        (
            f"Curvature and the learning rate ({name.EDGE:g} is the edge of stability of gradient descent without "
            "momentum)",
            [m for m in STEPPED if m in present],
        ),
        ("Where training ended: distances, gradient and training loss", [m for m in ends if m in ENDED]),
        ("Where training ended: metrics", [m for m in ends if m not in ENDED]),
    )
    return [
        measure_table(result, title, measures[k : k + (most or len(measures))], dash)
        for title, measures in tables
        for k in range(0, len(measures), most or len(measures) or 1)
    ]


ENDED = (name.DISTANCE, name.RELATIVE, "gradient norm", name.TRAIN_LOSS)


def measure_table(result: SharpnessResult, title: str, measures: Sequence[str], dash: str = "-") -> Content:
    """Some measures by row."""
    headings = [*OWN_HEADINGS, *(heading_of(m) for m in measures)]
    cells = [[*own_cells(r), *(cell(r.measures.get(m), dash) for m in measures)] for r in result.rows]
    return Content(f"{title}; intervals: see how it was measured", headings, cells, ("policy",))


OWN_HEADINGS = ("weights", "policy", "learning rate", "seeds")


def own_cells(row: FlatnessRow) -> list[str]:
    """What a row is of."""
    label = plain(row.label) if row.batch_size is None else count(row.batch_size)
    rate = ABSENT if row.learning_rate is None else number(row.learning_rate)
    return [label, plain(row.policy) or ABSENT, rate, count(row.seeds)]


def heading_of(measure: str) -> str:
    """A column's heading: a box without the word that the table's title says."""
    short = SHORTER.get(measure, measure)
    return plain(short.removeprefix("sharpness (box, ").removesuffix(")") if short.startswith("sharpness (") else short)


# --- claims ---


def claims_table(result: SharpnessResult, number_: int, dash: str = "-") -> Content:
    """One claim by each measure: verdict, ratio, change per doubling."""
    own = [c for c in result.claims if c.number == number_]
    headings = ["measure", "policy", "verdict", "ratio", "per doubling", "monotone"]
    cells = [claim_cells(c, dash) for c in own]
    title = f"({number_}) {own[0].claim if own else ''}: largest batch size over smallest, Holm-corrected intervals"
    return Content(title, headings, cells, ("measure", "policy", "verdict", "monotone"))


def claim_cells(claim: Claim, dash: str) -> list[str]:
    """One judgement as a row."""
    monotone = {True: "yes", False: "no", None: ABSENT}[claim.effect.monotone]
    slope = cell(claim.effect.slope_per_doubling, dash)
    ratio = cell(claim.effect.ratio, dash)
    return [plain(claim.effect.what), plain(claim.policy), claim.verdict, ratio, slope, monotone]


# --- distance ---


def distances_table(result: SharpnessResult, dash: str = "-") -> Content:
    """Distance from the initial weights at equal terms."""
    headings = ["batch size", "policy", "at equal", "which is", "distance"]
    cells = [
        [count(d.batch_size), plain(d.policy), plain(d.equal), number(d.at), cell(d.distance, dash)]
        for d in result.distances
    ]
    title = "Distance from the initial weights where all trials have something in common (95 % intervals)"
    return Content(title, headings, cells, ("policy", "at equal"))


def growth_table(result: SharpnessResult, dash: str = "-") -> Content:
    """The line in log steps beside the power law."""
    headings = ["batch size", "policy", "per factor e of steps", "R² of the line", "R² of the power law", "exponent"]
    cells = [
        [
            count(g.batch_size),
            plain(g.policy),
            cell(g.slope, dash),
            f"{g.explained:.3f}",
            f"{g.explained_by_power:.3f}",
            number(g.exponent),
        ]
        for g in result.growth
    ]
    title = "Growth of the distance: a line in the logarithm of the steps, and a power law (on the log of the distance)"
    return Content(title, headings, cells, ("policy",))


# --- causes ---


def cause_tables(result: SharpnessResult, dash: str = "-", most: int | None = None) -> list[Content]:
    """Causal runs over their seeds, a row for each kind, and their ratios to the uninterrupted ones.

    `most`: measures of one table, ratios one less; more are parted.
    """
    rows, against = result.causes, [r for r in result.causes if r.ratios]
    ended = [
        Content(
            "Training that went on otherwise, so many epochs before the switch and after it; 95 % intervals",
            [*CAUSE_HEADINGS, *(cause_heading(m) for m in part)],
            [[*cause_cells(r), *(cell(r.measures.get(m), dash) for m in part)] for r in rows],
            ("run",),
        )
        for part in parts_of([m for r in rows for m in r.measures], most)
    ]
    ratios = [
        Content(
            "The same as ratios to the uninterrupted runs of the batch size that it ended with, paired by seed; 95 % "
            "intervals, not corrected for their number, and where they lie by a 5 % band around 1",
            [*CAUSE_HEADINGS[:2], *(cause_heading(m).removesuffix(" (%)") for m in part)],
            [[*cause_cells(r)[:2], *(sided(r.ratios.get(m), dash) for m in part)] for r in against],
            ("run",),
        )
        for part in parts_of([m for r in against for m in r.ratios], most and most - 1)
    ]
    return [*ended, *ratios]


def parts_of(measures: Sequence[str], most: int | None) -> list[list[str]]:
    """Each measure once, so many together; None: all."""
    names = list(dict.fromkeys(measures))
    step = most or len(names) or 1
    return [names[k : k + step] for k in range(0, len(names), step)]


CAUSE_HEADINGS = ("run", "ended with", "epochs before", "and after", "seeds")


def cause_cells(row: CauseRow) -> list[str]:
    """What a kind of run was."""
    epochs = number(row.epochs) if row.kind == WARM else ABSENT
    after = ABSENT if row.kind == UNINTERRUPTED else number(row.epochs_after)
    return [run_words(row), count(row.batch_size), epochs, after, count(row.seeds)]


def cause_heading(measure: str) -> str:
    """A column's heading; there is one box, in the full space."""
    box = measure.removeprefix("sharpness (box, full space, ").removesuffix(")")
    return heading_of(measure) if box == measure else f"box sharpness, {box} (%)"


def run_words(row: CauseRow) -> str:
    """`uninterrupted` · `from 32 after 25 %` · `noise of 32`."""
    if row.kind == WARM:
        return f"from {count(row.from_batch_size)} after {100 * row.share:.0f} %"
    return f"noise of {count(row.from_batch_size)}" if row.kind == NOISE else plain(row.kind)


def sided(ratio: Measured | None, dash: str = "-") -> str:
    """`0.52 [0.40-0.67] lower`."""
    return ABSENT if ratio is None else f"{cell(ratio, dash)} {side_of(ratio)}"


# --- on the page only ---


def points_table(result: SharpnessResult, dash: str = "-") -> Content:
    """Every set of weights by itself."""
    points = result.data.points
    measures = [m for m in name.measures_of(points) if m.flatness or m.name in (name.BATCH, name.TRAIN_LOSS)]
    headings = ["weights", "seed", "step", *(heading_of(m.name) for m in measures)]
    cells = [[plain(p.label), seed_of(p), count(p.step), *(cell(m.of(p), dash) for m in measures)] for p in points]
    return Content("Every set of weights; intervals are the estimators'", headings, cells)


def seed_of(point: PointSharpness) -> str:
    """The seed, where there is one."""
    return ABSENT if point.seed is None else str(point.seed)


def convergence_table(result: SharpnessResult) -> Content:
    """How far from the maximum in the box few iterations are, on a subset."""
    found = [(p, b) for p in result.data.points for b in p.subset_boxes]
    headings = ["weights", "box", "examples", "iterations", "converged", "evaluations", "sharpness (%)"]
    cells = [[plain(p.label), *box_cells(b)] for p, b in found]
    return Content("The search in the box carried on, on few examples", headings, cells, ("box", "converged"))


def box_cells(box: BoxSharpness) -> list[str]:
    """One search as a row."""
    return [
        heading_of(name.box_name(box.space, box.epsilon)),
        count(box.examples),
        count(box.iterations),
        "yes" if box.converged else "no",
        count(box.evaluations),
        number(box.percent),
    ]


def traces_table(result: SharpnessResult, dash: str = "-") -> Content:
    """The trace by one estimator beside the other, where both were used."""
    found = [p for p in result.data.points if p.trace_again is not None]
    cells = [[plain(p.label), cell(p.trace, dash), cell(p.trace_again, dash)] for p in found]
    return Content(
        "The trace by two estimators, 95 % intervals over their probes", ["weights", "Hutchinson", "Hutch++"], cells
    )


def sample_table(result: SharpnessResult, dash: str = "-") -> Content:
    """The largest eigenvalue over ever more examples."""
    cells = [[count(n), cell(value, dash)] for n, value in result.data.sample_sizes]
    title = "Largest eigenvalue over so many examples, at one set of weights; intervals are residual norms"
    return Content(title, ["examples", "largest eigenvalue"], cells)


def layers_table(result: SharpnessResult) -> Content:
    """Distance over initial norm of each parameter tensor, mean over seeds."""
    rows = [r for r in result.rows if layers_of(result, r)]
    names = list(dict.fromkeys(layer for r in rows for layer in layers_of(result, r)))
    headings = ["parameter", *(f"{own_cells(r)[0]} {plain(r.policy)}".strip() for r in rows)]
    cells = [[plain(n), *(number_or_dash(layers_of(result, r).get(n)) for r in rows)] for n in names]
    return Content("Relative distance from the initial weights by parameter, mean over seeds", headings, cells)


def number_or_dash(value: float | None) -> str:
    """A number, or a dash where it is not known."""
    return ABSENT if value is None else number(value)


def layers_of(result: SharpnessResult, row: FlatnessRow) -> dict[str, float]:
    """|w - w0| / |w0| of each parameter, mean over a row's points; those that began at 0 have none."""
    points = [p for p in result.data.points if belongs(p, row)]
    names = dict.fromkeys(layer.name for p in points for layer in p.layers)
    values = {
        n: [v.distance / v.initial_norm for p in points for v in p.layers if v.name == n and v.initial_norm > 0]
        for n in names
    }
    return {n: sum(vs) / len(vs) for n, vs in values.items() if vs}


def belongs(point: PointSharpness, row: FlatnessRow) -> bool:
    """Whether a set of weights is one of a row's."""
    if row.batch_size is None:
        return point.batch_size is None and point.label == row.label
    return (point.batch_size, point.policy) == (row.batch_size, row.policy)
