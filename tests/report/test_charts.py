"""Is every panel valid Vega-Lite, with colours that tell and axes that hold their values?"""

from __future__ import annotations

import json
import math
from typing import Any

import altair as alt
import pytest
from made_up import study

from batchscope.errors import CannotAnswer
from batchscope.report.charts import dodged, line_values, sizes_scale
from batchscope.report.figures import figures_of
from batchscope.report.html import list_figures
from batchscope.report.style import LOG_FROM, colours, needed, scale_of, short

VALID: set[str] = set()  # structures that the schema has passed: it takes half a second for each panel


def structure(value: Any) -> str:
    """What a schema sees: keys, and kinds of values; of a list of like values one."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{structure(v)}" for k, v in sorted(value.items())) + "}"
    if isinstance(value, list):
        return "[" + ",".join(dict.fromkeys(map(structure, value))) + "]"
    return value if isinstance(value, str) and not value.startswith("#") else type(value).__name__


@pytest.mark.parametrize("options", [{}, {"policies": ("held",)}, {"with_timing": False}, {"n_batch": 1, "seeds": 1}])
def test_every_panel_is_valid_and_plain_json(options: dict) -> None:
    result, data = study(**options)
    figures = list_figures(figures_of(result, data), result)
    assert len(figures) >= (5 if options.get("with_timing", True) else 4)
    for figure in figures:
        for panel in figure.panels:
            json.dumps(panel.spec, allow_nan=False)
            bare = {k: v for k, v in panel.spec.items() if k != "datasets"}  # the schema says little about rows, slowly
            shape = structure(bare)
            if shape not in VALID:
                alt.LayerChart.from_dict(bare, validate=True)
                VALID.add(shape)
            assert panel.label
            assert "chosen" in {p["name"] for p in panel.spec["params"]}


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.1."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("sizes", [(32,), (32, 256), (1, 2, 4, 8, 16, 1797), tuple(2**k for k in range(13))])
def test_colours_grow_lighter_with_the_batch_size_and_stay_visible_on_white(sizes: tuple[int, ...]) -> None:
    light = [luminance(c) for c in colours(sizes).values()]
    assert light == sorted(light)
    assert len(set(light)) == len(sizes)
    assert 1.05 / (max(light) + 0.05) > 1.8


@pytest.mark.parametrize("values", [[1.0, 1000.0], [0.3, 0.31], [0.0, 5.0], [-1.0, 2.0], [7.0], [math.nan, 2.0, 3.0]])
def test_a_scale_holds_every_value_and_is_logarithmic_only_for_wide_positive_ones(values: list[float]) -> None:
    scale = scale_of(values)
    finite = [v for v in values if math.isfinite(v)]
    assert scale["domain"][0] <= min(finite) <= max(finite) <= scale["domain"][1]
    wide = min(finite) > 0 and max(finite) / min(finite) >= LOG_FROM
    assert (scale["type"] == "log") == wide


def test_the_axis_of_batch_sizes_stretches_to_a_critical_size_just_outside() -> None:
    result, data = study()
    figure = figures_of(result, data).steps_to_goal
    top = figure.batch_sizes[-1]
    near = figure._replace(critical=result.law.critical_batch_size.__class__(2.0 * top, top, 3.0 * top, 9))
    far = figure._replace(critical=result.law.critical_batch_size.__class__(50.0 * top, top, None, 9))
    assert sizes_scale(near)["domain"][1] > 2.0 * top
    assert sizes_scale(far)["domain"][1] < 2.0 * top


def test_only_held_points_stand_beside_their_batch_size_so_that_tuned_ones_meet_the_law() -> None:
    assert dodged("tuned", 64) == dodged("both", 64) == 64
    assert 32 < dodged("held", 64) < 64


def test_numbers_are_short_and_never_nan() -> None:
    assert short(0.123456789) == 0.12346
    assert short(math.nan) is None
    assert short(None) is None
    result, data = study(with_timing=False)
    values = line_values(figures_of(result, data).lines)
    assert values[0]["seconds"] == []
    json.dumps(values, allow_nan=False)


def test_a_missing_library_is_one_sentence() -> None:
    with pytest.raises(CannotAnswer, match=r"no_such_library is not installed: pip install 'batchscope\[report\]'"):
        needed("no_such_library")
