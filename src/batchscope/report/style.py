"""What do all charts of the report have in common: colours, axes, size, and the batch size that is picked out?

Batch size is a sequential colour on log2 (viridis without its pale end, safe for colour-blind readers); policy is
colour, shape and dash together. Every panel has a parameter `chosen`: 0 shows all batch sizes alike, any other value
fades the rest; the page sets it in all panels at once.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

from batchscope.errors import CannotAnswer

# viridis at 0, 1/8 .. 7/8 of its length (van der Walt & Smith 2015); the last eighth is too pale on white
VIRIDIS = ("#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58")
# Okabe & Ito 2008: blue and vermilion for the two policies, grey for what no policy changes
POLICY_COLOURS = {"held": "#0072b2", "tuned": "#d55e00", "both": "#444444"}
POLICY_SHAPES = {"held": "circle", "tuned": "square", "both": "circle"}
POLICY_DASHES = {"held": [5, 3], "tuned": [1, 0], "both": [1, 0]}
HEIGHT = 270  # pixels; the width is the box's
LOG_FROM = 5.0  # largest over smallest at which an axis turns logarithmic (a guess at what reads best)
FADED = 0.07
CONFIG = {
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "gridColor": "#e8e8e8",
        "domainColor": "#777",
        "tickColor": "#777",
        "labelColor": "#333",
        "titleColor": "#111",
        "labelFontSize": 11,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
    },
    "legend": {"orient": "top", "title": None, "labelFontSize": 12, "labelColor": "#222"},
}


def needed(module: str) -> Any:
    """A module of the extra `report`, or one sentence on how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise CannotAnswer(
            f"the HTML report needs altair, vl-convert-python and jinja2, and {error.name or module} is not installed: "
            "pip install 'batchscope[report]'"
        ) from error


def colours(batch_sizes: Sequence[int]) -> dict[int, str]:
    """A colour for each batch size: its place on log2 B between the smallest and the largest, along viridis."""
    logs = [math.log2(b) for b in batch_sizes]
    span = (max(logs) - min(logs)) or 1.0
    return {b: along((x - min(logs)) / span) for b, x in zip(batch_sizes, logs, strict=True)}


def along(place: float) -> str:
    """The colour at `place` in 0..1 of the scale, linear between its stops."""
    at = place * (len(VIRIDIS) - 1)
    left = min(int(at), len(VIRIDIS) - 2)
    ends = [[int(VIRIDIS[i][k : k + 2], 16) for k in (1, 3, 5)] for i in (left, left + 1)]
    mixed = (round(a + (b - a) * (at - left)) for a, b in zip(*ends, strict=True))
    return "#" + "".join(f"{v:02x}" for v in mixed)


def short(value: float | None) -> float | None:
    """Five significant digits, None where JSON has no number: enough for a screen, small on a page."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


def scale_of(values: Iterable[float | None], pad: float = 0.05) -> dict[str, Any]:
    """A scale that holds every finite value: logarithmic where they are positive and span LOG_FROM, padded."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    positive = [v for v in finite if v > 0]
    if not finite:
        return {"zero": False}
    if len(positive) == len(finite) and max(positive) / min(positive) >= LOG_FROM:
        grow = (max(positive) / min(positive)) ** pad
        return {"type": "log", "domain": [min(positive) / grow, max(positive) * grow]}
    low, high = min(finite), max(finite)
    room = pad * ((high - low) or abs(high) or 1.0)
    bottom = 0.0 if low >= 0 and low < 0.35 * high else low - room
    return {"type": "linear", "domain": [bottom, high + room], "nice": False}


# a diagonal cross: Vega's own "cross" is upright and reads as a plus
CROSS = "M-1,-0.7L-0.7,-1L0,-0.3L0.7,-1L1,-0.7L0.3,0L1,0.7L0.7,1L0,0.3L-0.7,1L-1,0.7L-0.3,0Z"


def faded(alt: Any, opacity: float) -> Any:
    """Full opacity for the chosen batch size (or where none is chosen), little for the rest."""
    condition = {"test": "chosen == 0 || datum.batch_size == chosen", "value": opacity}
    return alt.OpacityValue(value=FADED, condition=condition)  # alt.condition would cost 30 ms each in schema look-ups


def axis(scale: dict[str, Any]) -> Any:
    """Few ticks and short labels, on log and linear axes alike."""
    alt = needed("altair")
    if scale.get("type") == "log":
        return alt.Axis(labelOverlap="greedy", format="~s" if max(scale["domain"]) >= 1e3 else "~g", tickCount=6)
    top = max((abs(v) for v in scale.get("domain", [1.0])), default=1.0)
    return alt.Axis(tickCount=5, format="~s" if top >= 1e4 else "~g")


def finished(chart: Any) -> dict[str, Any]:
    """A panel's specification: width of its box, fixed height, no frame, the parameter `chosen` at 0.

    These are set on the plain dictionary: altair would copy the whole chart for each. The tests hold the result to
    Vega-Lite's schema, so it is not checked again here.
    """
    spec = chart.to_dict(validate=False)
    spec |= {"params": [{"name": "chosen", "value": 0}], "width": "container", "height": HEIGHT}
    spec |= {"background": "white", "padding": 4, "autosize": {"type": "fit-x", "contains": "padding"}}
    spec["config"] = CONFIG
    return spec
