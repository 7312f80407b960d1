"""Is the page of `match` one file that opens offline, draws its figures, and shows every name as text?"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import Visit, needs_browser, text_of
from made_up import HOSTILE
from made_up_match import ALL, diverged, hostile, matched, unconfirmed

from batchscope.errors import CannotAnswer
from batchscope.records import MatchResult
from batchscope.references import cite
from batchscope.report import match_facts as facts
from batchscope.report import match_tables as tables
from batchscope.report.match_html import BADGES, list_figures, write_match
from batchscope.report.match_words import sentences_of, worded
from batchscope.report.page import DASH

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
    return write_match(hostile(), tmp_path_factory.mktemp("page") / "page.html")


@pytest.mark.browser
@needs_browser
def test_opens_offline_draws_every_figure_and_fits_a_phone(browser: Any, attacked: Path) -> None:
    visit = Visit(browser, attacked, width=390)
    assert visit.requests == [attacked.as_uri()]
    assert visit.complaints == []
    charts = visit.page.query_selector_all(".chart")
    assert len(charts) == 8
    for chart in charts:
        assert len(chart.query_selector_all("svg .role-mark path, svg .role-mark line")) > 8
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert visit.page.evaluate(SPILLED) == []
    for place in ("h1", ".goal", ".found", ".snippet", ".keys", "dl", ".notes"):
        assert HOSTILE in visit.page.inner_text(place), place
    assert visit.page.title() == f"Match: {HOSTILE}"


@pytest.mark.browser
@needs_browser
@pytest.mark.parametrize("make", [diverged, unconfirmed])
def test_a_page_with_little_to_draw_opens_too(browser: Any, make: Callable[[], MatchResult], tmp_path: Path) -> None:
    visit = Visit(browser, write_match(make(), tmp_path / "page.html"))
    assert visit.complaints == []


def test_a_hostile_name_never_reaches_the_page_unescaped(attacked: Path) -> None:
    text = attacked.read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert len(re.findall(r"<script[ >]", text)) == text.count("</script>") == 4


@pytest.mark.parametrize("name", [name for name in ALL if name != "hostile"])
def test_the_page_begins_with_the_answer_and_holds_every_number(name: str, tmp_path: Path) -> None:
    result = worded(ALL[name]())
    page = write_match(result, tmp_path / "page.html")
    text = text_of(page)
    assert page.stat().st_size < 3_000_000
    places = [text.index(" ".join(s.split())) for s in sentences_of(result)]
    assert places == sorted(places)
    assert places[-1] < text.index("Every remedy at every batch size Over")
    for row in (result.baseline, *result.untuned, *result.rows):
        assert " ".join(tables.row_cells(row, result, DASH)).replace("\u2060", "") in text
        assert row.why in text
        assert row.role in ("baseline", "untuned") or row.changes in text
    for fact, value in facts.facts_of(result):
        assert f"{fact} {value}" in text
    shown = [*facts.notes_of(result), *facts.VERDICT_RULES, *cite(result).splitlines()]
    for line in [*shown, *(c.reason for c in result.cannot_apply)]:
        assert line[1:-1] in text
    assert (" ".join(result.configuration.split()) in text) == (text.count("To paste") == 1) or not result.configuration
    assert not {"None", "nan", "inf", "undefined"} & set(text.split())


def test_verdicts_have_their_badges_and_matches_stand_out(tmp_path: Path) -> None:
    text = write_match(matched(), tmp_path / "page.html").read_text("utf-8")
    verdicts = [tables.verdict_of(r) for r in matched().rows]
    assert {v.removesuffix(tables.OPEN) for v in verdicts} == {"matches", "narrows", "does not", "dropped"}
    assert any(v.endswith(tables.OPEN) for v in verdicts)
    for verdict, badge in BADGES.items():
        assert text.count(f'<span class="badge {badge}">{verdict}</span>') == 2 * verdicts.count(verdict)
    assert text.count('<tr class="best">') == verdicts.count("matches")


def test_figures_come_in_reading_order_with_a_key_for_each_series() -> None:
    gap, races, steps = list_figures(matched())
    assert [len(f.panels) for f in (gap, races, steps)] == [1, 4, 3]
    names = {tables.remedy_label(r.remedy) for r in matched().rows}
    assert {k.name for k in gap.keys} == names | {tables.UNTUNED}
    assert {k.name for k in steps.keys} == names | {tables.UNTUNED, "baseline"}
    assert {k.name for k in races.keys} == names | {"baseline"}
    assert len({(k.colour, k.dash) for k in steps.keys}) == len(steps.keys)
    assert [f.title.split(":")[0] for f in list_figures(diverged())] == [
        "The gap against batch size, and what each remedy leaves of it",
        "What is left of the gap, against steps to the goal",
    ]
    assert list_figures(unconfirmed()) == []


def test_what_the_answer_rests_on_is_cited() -> None:
    said = cite(matched())
    assert said.startswith("Jamieson, Talwalkar (2016)")
    for paper in ("Goyal", "Foret", "Bergsma", "Shallue"):
        assert said.count(f"{paper}, ") == 1
    assert "Jamieson" not in cite(diverged())


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CannotAnswer, match=r"could not be written to .*gone.*No such file or directory"):
        write_match(matched(), tmp_path / "gone" / "page.html")
