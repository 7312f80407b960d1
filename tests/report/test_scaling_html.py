"""Is the page of `scale` one file that opens offline, draws its figures, and shows every name as text?"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import Visit, needs_browser, text_of
from made_up import HOSTILE
from made_up_scaling import alone, described, hostile, joined

from batchscope.analysis.step_time import scaled
from batchscope.errors import CannotAnswer
from batchscope.records import ScalingResult
from batchscope.references import cite
from batchscope.report.noise_words import cell
from batchscope.report.scaling_facts import facts_of, notes_of
from batchscope.report.scaling_html import list_figures, write_scaling
from batchscope.report.scaling_words import sentences_of

# texts that stick out of their chart's box
SPILLED = """[...document.querySelectorAll('.chart')].flatMap(chart => {
    const outer = chart.getBoundingClientRect();
    return [...chart.querySelectorAll('svg text')].filter(t => {
        const box = t.getBoundingClientRect(), shown = t.textContent && getComputedStyle(t).opacity > 0;
        return shown && box.width && (box.left < outer.left - 1 || box.right > outer.right + 1);
    }).map(t => t.textContent);
})"""


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page whose names are an attack on it."""
    return write_scaling(hostile(), tmp_path_factory.mktemp("page") / "page.html")


@pytest.mark.browser
@needs_browser
def test_opens_offline_draws_every_figure_and_fits_a_phone(browser: Any, attacked: Path) -> None:
    visit = Visit(browser, attacked, width=390)
    assert visit.requests == [attacked.as_uri()]
    assert visit.complaints == []
    charts = visit.page.query_selector_all(".chart")
    assert len(charts) == 6
    for chart in charts:
        assert len(chart.query_selector_all("svg .role-mark path, svg .role-mark line")) > 8
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert visit.page.evaluate(SPILLED) == []
    for place in ("h1", ".goal", ".claims", "dl", ".notes"):
        assert HOSTILE in visit.page.inner_text(place), place
    assert visit.page.title() == f"Scaling: {HOSTILE}"


def test_a_hostile_name_never_reaches_the_page_unescaped(attacked: Path) -> None:
    text = attacked.read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert len(re.findall(r"<script[ >]", text)) == text.count("</script>") == 4


@pytest.mark.parametrize("make", [joined, alone])
def test_the_page_begins_with_the_answer_and_holds_every_number(
    make: Callable[[], ScalingResult], tmp_path: Path
) -> None:
    result = make()
    page = write_scaling(result, tmp_path / "page.html")
    text = text_of(page)
    assert page.stat().st_size < 3_000_000
    places = [text.index(" ".join(s.split())) for s in sentences_of(result)]
    assert places == sorted(places)
    assert places[-1] < text.index("Figures")
    for r in result.rows:
        assert f"{r.devices} {r.batch_size} {cell(scaled(r.seconds_per_step, 1e3), '–')}" in text
    for c in result.choices:
        for m in (c.seconds_to_goal, c.speedup, c.device_seconds, c.steps_to_goal):
            assert cell(m, "–") in text
    for p in result.predictions:
        assert cell(scaled(p.seconds_per_step, 1e3), "–") in text
    for name, value in facts_of(result):
        assert f"{name} {value}" in text
    for line in [*notes_of(result), *cite(result).splitlines(), *(c.why for c in result.claims)]:
        assert line[1:-1] in text
    assert ("Seconds to the goal are not known" in text) == (not result.choices)
    assert "None" not in text
    assert "nan" not in text.lower().split()


def test_the_most_useful_count_is_marked_and_claims_have_their_badges(attacked: Path) -> None:
    text = attacked.read_text("utf-8")
    best = re.findall(r'<tr class="best"><th scope="row" class="first">([\d,]+)</th>', text)
    assert best == [f"{joined().most_useful}"] * 2
    assert text.count('class="badge') == len(joined().claims)
    assert 'data-number="8"' in text
    assert 'data-number="9"' in text


def test_figures_come_in_reading_order_and_say_what_they_show() -> None:
    figures = list_figures(described())
    assert len(figures) == 6
    assert [f.title.split(":")[0] for f in figures[:2]] == ["Strong scaling", "Weak scaling"]
    assert "over the link described, latency 5.00 µs" in figures[-1].caption
    assert "beyond the batch sizes trained" in figures[-2].caption
    assert len(list_figures(alone())) == 2


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CannotAnswer, match=r"could not be written to .*gone.*No such file or directory"):
        write_scaling(alone(), tmp_path / "gone" / "page.html")
