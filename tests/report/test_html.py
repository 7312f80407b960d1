"""Is the page one file that opens offline, draws every figure, and shows every name as text?"""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from browsing import Visit, needs_browser
from made_up import HOSTILE, hostile, study

from batchscope.errors import CannotAnswer
from batchscope.report.html import write_report
from batchscope.report.page import json_for_page


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a study as large as the default one: 8 batch sizes, 2 policies, 3 seeds."""
    result, data = study(n_batch=8, b_crit=60.0)
    return write_report(result, data, tmp_path_factory.mktemp("report") / "study.html")


@pytest.mark.browser
@needs_browser
def test_opens_offline_without_a_request_or_a_complaint_and_draws_every_figure(browser: Any, page: Path) -> None:
    visit = Visit(browser, page)
    assert visit.requests == [page.as_uri()]
    assert visit.complaints == []
    charts = visit.page.query_selector_all(".chart")
    assert len(charts) == 12
    for chart in charts:
        drawn = chart.query_selector_all("svg .role-mark path, svg .role-mark rect, svg .role-mark line")
        assert len(drawn) > 2, chart.get_attribute("aria-label")
    titles = [h.inner_text() for h in visit.page.query_selector_all("figure h3")]
    assert [t.split(". ")[1] for t in titles] == [
        "Training loss by epoch",
        "Training loss by second",
        "Validation loss by epoch",
        "Lowest validation loss",
        "Seconds per epoch",
        "Steps and examples to the goal",
        "Total time",
    ]


@pytest.mark.browser
@needs_browser
def test_a_picked_batch_size_stands_out_in_every_figure_and_lets_go(browser: Any, page: Path) -> None:
    visit = Visit(browser, page)

    def pressed() -> list[str]:
        return [b.inner_text() for b in visit.page.query_selector_all('.legend [aria-pressed="true"]')]

    def faded() -> int:
        return len(visit.page.query_selector_all('svg .role-mark path[opacity="0.07"]'))

    assert (pressed(), faded()) == ([], 0)
    visit.page.click("figure:nth-of-type(1) .legend button:nth-of-type(3)")
    visit.page.wait_for_function("document.querySelectorAll('svg .role-mark path[opacity=\"0.07\"]').length > 0")
    assert pressed() == ["32", "32", "32"]
    visit.page.click("figure:nth-of-type(2) .legend button:nth-of-type(3)")
    visit.page.wait_for_function("document.querySelectorAll('svg .role-mark path[opacity=\"0.07\"]').length == 0")
    assert pressed() == []


@pytest.mark.browser
@needs_browser
def test_a_phone_scrolls_the_table_and_not_the_page(browser: Any, page: Path) -> None:
    visit = Visit(browser, page, width=390)
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert visit.page.evaluate("(b => b.scrollWidth > b.clientWidth)(document.querySelector('.scroll'))")
    widths = visit.page.evaluate(
        "[...document.querySelectorAll('.chart svg')].map(s => s.getBoundingClientRect().width)"
    )
    assert all(200 < w < 390 for w in widths)


@pytest.mark.browser
@needs_browser
def test_hostile_names_show_as_text(browser: Any, tmp_path: Path) -> None:
    result, data = hostile()
    folder = tmp_path / "<script>alert(1)<"
    folder.mkdir()
    visit = Visit(browser, write_report(result, data, folder / "script>.html"))
    assert visit.complaints == []
    heading = visit.page.inner_text("h1")
    assert HOSTILE in heading
    assert HOSTILE in visit.page.inner_text(".goal")
    assert f"test {HOSTILE}" in visit.page.inner_text("thead")
    assert HOSTILE in visit.page.inner_text(".claims")
    assert HOSTILE in visit.page.inner_text("dl")
    assert visit.page.title() == f"Batch size: {HOSTILE}"


def test_a_hostile_name_never_reaches_the_page_unescaped(tmp_path: Path) -> None:
    text = write_report(*hostile(), tmp_path / "page.html").read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert len(re.findall(r"<script[ >]", text)) == text.count("</script>") == 4


def test_the_page_is_small_and_has_a_table_row_per_arm(page: Path) -> None:
    result, _ = study(n_batch=8, b_crit=60.0)
    text = page.read_text(encoding="utf-8")
    assert page.stat().st_size < 3_000_000
    assert text.count('<th scope="row"') == len(result.rows) == 16
    assert text.count('class="badge') == len(result.claims)
    for note in result.notes:
        assert note[1:20] in text


def test_json_cannot_close_its_script_element() -> None:
    assert json_for_page({"a": "</script><!--"}) == '{"a":"\\u003c/script>\\u003c!--"}'


def test_without_timing_or_tuning_the_page_is_still_written(tmp_path: Path) -> None:
    result, data = study(policies=("held",), with_timing=False, n_batch=2, seeds=1)
    assert write_report(result, data, tmp_path / "page.html").exists()


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CannotAnswer, match=r"could not be written to .*gone.*No such file or directory"):
        write_report(*study(n_batch=2), tmp_path / "gone" / "page.html")


def test_a_failed_write_leaves_the_old_page_and_no_scraps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "page.html"
    old.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(CannotAnswer, match="No space left on device"):
        write_report(*study(n_batch=2), old)
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    assert old.read_text() == "old"


@pytest.mark.parametrize("module", ["altair", "vl_convert", "jinja2"])
def test_a_missing_library_is_one_sentence(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(CannotAnswer, match=r"pip install 'batchscope\[report\]'"):
        write_report(*study(n_batch=2), tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_nobody_reached_is_a_page_of_bounds(tmp_path: Path) -> None:
    result, data = study(n_batch=2)
    rows = tuple(
        dataclasses.replace(
            r,
            reached=0,
            steps_to_goal=dataclasses.replace(r.steps_to_goal, estimate=None, high=None),
            seconds_to_goal=dataclasses.replace(r.seconds_to_goal, estimate=None, high=None),
        )
        for r in result.rows
    )
    text = write_report(dataclasses.replace(result, rows=rows), data, tmp_path / "page.html").read_text("utf-8")
    assert "No batch size reached the goal" in text
