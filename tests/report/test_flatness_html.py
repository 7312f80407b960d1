"""Is the page of `sharpness` one file that opens offline, draws its figures, and shows every name as text?"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import Visit, needs_browser, text_of
from made_up import HOSTILE
from made_up_flatness import bare, drawn, files, held, hostile, whole

from batchscope.errors import CannotAnswer
from batchscope.records import SharpnessResult
from batchscope.references import cite
from batchscope.report.flatness_facts import facts_of, notes_of
from batchscope.report.flatness_figures import figures_among, missing_among
from batchscope.report.flatness_html import write_flatness
from batchscope.report.flatness_words import sentences_of
from batchscope.report.noise_words import cell

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
    return write_flatness(hostile(), tmp_path_factory.mktemp("page") / "page.html")


@pytest.mark.browser
@needs_browser
def test_opens_offline_draws_every_figure_and_fits_a_phone(browser: Any, attacked: Path) -> None:
    visit = Visit(browser, attacked, width=390)
    assert visit.requests == [attacked.as_uri()]
    assert visit.complaints == []
    charts = visit.page.query_selector_all(".chart")
    assert len(charts) == sum(len(f.panels) for f in figures_among(drawn(hostile)))
    for chart in charts:
        assert len(chart.query_selector_all("svg .role-mark path, svg .role-mark line")) >= 2
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert visit.page.evaluate(SPILLED) == []
    for place in ("h1", ".goal", "#claims ~ .scroll", "dl", ".notes"):
        assert any(HOSTILE in e.inner_text() for e in visit.page.query_selector_all(place)), place
    assert visit.page.title() == f"Sharpness: {HOSTILE}"


def test_a_hostile_name_never_reaches_the_page_unescaped(attacked: Path) -> None:
    text = attacked.read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert len(re.findall(r"<script[ >]", text)) == text.count("</script>") == 4


@pytest.mark.parametrize("make", [whole, held, files, bare])
def test_the_page_begins_with_the_answer_and_holds_every_number(
    make: Callable[[], SharpnessResult], tmp_path: Path
) -> None:
    result = make()
    page = write_flatness(result, tmp_path / "page.html")
    text = text_of(page)
    assert page.stat().st_size < 3_000_000
    places = [text.index(" ".join(s.split())) for s in sentences_of(result)]
    assert places == sorted(places)
    values = [m for r in result.rows for m in r.measures.values()] + [c.effect.ratio for c in result.claims]
    values += [m for r in result.causes for m in (*r.measures.values(), *r.ratios.values())]
    for m in [*values, *(d.distance for d in result.distances), *(g.slope for g in result.growth)]:
        assert cell(m, "–") in text
    for name, value in facts_of(result):
        assert f"{name} {value}" in text
    for told in [
        *notes_of(result),
        *cite(result).splitlines(),
        *missing_among(drawn(make)),
        *(c.why for c in result.claims),
    ]:
        assert told[1:-1] in text
    assert "None" not in text
    assert "nan" not in text.lower().split()
    assert ("No claim was judged" in text) == (not result.claims)


def test_claims_have_their_badges_and_10_comes_first(attacked: Path) -> None:
    text = attacked.read_text("utf-8")
    assert text.count('class="badge') == len(hostile().claims)
    assert text.index("Claim 10: ") < text.index("Claim 6: ")


def test_figures_come_in_reading_order_and_what_is_missing_is_said() -> None:
    assert [f.title for f in figures_among(drawn(whole))] == [d.title for d in drawn(whole)]
    assert len(figures_among(drawn(whole))) == 11
    assert len(figures_among(drawn(held))) + len(missing_among(drawn(held))) == 11
    assert "two standard errors over 4 random starts" in figures_among(drawn(whole))[6].caption


def test_the_papers_are_those_of_what_was_measured() -> None:
    assert {"1609.04836", "2102.11600", "2103.00065", "2412.20553", "1712.09913", "1705.08741"} <= set(
        re.findall(r"arXiv:(\S+)", cite(whole()))
    )
    assert "2102.11600" not in cite(bare())


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CannotAnswer, match=r"could not be written to .*gone.*No such file or directory"):
        write_flatness(bare(), tmp_path / "gone" / "page.html")
