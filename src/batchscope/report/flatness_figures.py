"""Which figures show how flat minima are, what does each show, and what is said where there is nothing to draw?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from batchscope.records import SharpnessResult
from batchscope.report import flatness_charts as charts
from batchscope.report import flatness_pictures as pictures
from batchscope.report.charts import Panel
from batchscope.report.page import Figure

SEEDS = "Pale marks are seeds, bars 95 % intervals; circles held, squares tuned."
KINDS = "Training solid, validation dashed."


class Drawing(NamedTuple):
    """A figure before it is numbered: title, caption, panels, and what is said without panels."""

    title: str
    caption: str
    panels: Sequence[Panel]
    missing: str


def drawings_of(result: SharpnessResult) -> list[Drawing]:
    """All drawings in reading order, with panels or without."""
    return [*flat_drawings(result), *picture_drawings(result), *distance_drawings(result), *other_drawings(result)]


def figures_among(drawings: Sequence[Drawing]) -> list[Figure]:
    """Those that have something to draw."""
    return [Figure(d.title, d.caption, tuple(d.panels)) for d in drawings if d.panels]


def missing_among(drawings: Sequence[Drawing]) -> list[str]:
    """What was not drawn, and why, a sentence each."""
    return [f"{d.title}: {d.missing}" for d in drawings if not d.panels]


def flat_drawings(result: SharpnessResult) -> list[Drawing]:
    """Measures against batch size and against training loss."""
    return [
        Drawing(
            "Every measure of flatness against batch size",
            f"{SEEDS} The grey line at 2 is the edge of stability of gradient descent without momentum: of the largest "
            "eigenvalue for the full batch, of batch sharpness for small ones.",
            charts.measure_panels(result, charts.sharp_measures(result)),
            "no weights of a known batch size were measured.",
        ),
        Drawing(
            "Where training ended, against batch size",
            f"{SEEDS} At the measured weights.",
            charts.measure_panels(result, charts.end_measures(result)),
            "no weights of a known batch size were measured.",
        ),
        Drawing(
            "Sharpness against training loss",
            "Every set of weights, coloured by batch size; circles held, squares tuned. Points at the same loss can be "
            "compared; the curvature of cross-entropy falls as the loss does.",
            charts.loss_panels(result),
            "fewer than two sets of weights have a value.",
        ),
    ]


def picture_drawings(result: SharpnessResult) -> list[Drawing]:
    """Lines, slices and spectra."""
    asked = "no pictures were asked for." if not result.data.question.pictures else "none was measured."
    starts = max((len(p.density.nodes) for p in result.data.points if p.density is not None), default=0)
    band = f"The band is two standard errors over {starts} random starts." if starts > 1 else "One start has no band."
    return [
        Drawing(
            "Between a small-batch and a large-batch minimum",
            f"{KINDS} The straight line is (1 − α) small + α large, the curved one cos(απ/2) small + sin(απ/2) large.",
            pictures.between_panels(result),
            asked,
        ),
        Drawing(
            "Around each minimum: one direction",
            f"{KINDS} The direction is random, every filter of it scaled to the norm of the weights' own filter, so "
            "that the scale of the weights drops out.",
            pictures.slice_panels(result),
            asked,
        ),
        Drawing(
            "Around each minimum: two directions",
            "Training loss over two random filter-normalised directions; all grids share one scale of colours.",
            pictures.heat_panels(result),
            asked,
        ),
        Drawing(
            "Spectrum of the Hessian",
            "Density of the eigenvalues at the same weights, under a Gaussian kernel as wide as 1 % of the axis. "
            f"{band}",
            pictures.density_panels(result),
            "no spectral density was measured.",
        ),
    ]


def distance_drawings(result: SharpnessResult) -> list[Drawing]:
    """Distances along training, and by parameter."""
    return [
        Drawing(
            "Distance from the initial weights along training",
            "One line per trial of the study, coloured by batch size; distance that grows with the logarithm of the "
            "steps is a straight line here.",
            charts.trace_panels(result),
            "the traces of a study are needed.",
        ),
        Drawing(
            "Distance by parameter",
            "|w − w₀| / |w₀| of each parameter tensor at the measured weights, mean over seeds, in the model's order; "
            "tensors that begin at 0 have no relative distance and are left out.",
            charts.layer_panels(result),
            "the initial weights are not known.",
        ),
    ]


def causes_caption(result: SharpnessResult) -> str:
    """What the marks are, and the levels with their intervals."""
    levels = charts.levels_of(result)
    dashed = f" Dashed: {levels}." if levels else ""
    return (
        "Warm starts: weights of one batch size, after a share of its way to its lowest validation loss, trained on at "
        "another with a fresh optimiser and a whole budget; at 0 the runs that nothing interrupted. Pale marks are "
        f"seeds, bars 95 % intervals.{dashed}"
    )


def other_drawings(result: SharpnessResult) -> list[Drawing]:
    """Causal runs and sample sizes."""
    return [
        Drawing(
            "Training that went on otherwise",
            causes_caption(result),
            charts.cause_panels(result),
            "no causal runs were asked for." if not result.data.question.causes else "none was measured.",
        ),
        Drawing(
            "How many examples the largest eigenvalue needs",
            "At one set of weights, over ever more training examples: few examples tend to put it too high.",
            charts.sample_panels(result),
            "it was measured over one number of examples only.",
        ),
    ]
