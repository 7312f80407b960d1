"""Is a noise run's page one file that opens offline, draws its figures, and shows every name as text?"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import Visit, needs_browser, text_of
from made_up_noise import ALL, HOSTILE, at_least, hostile, mixed_windows, noise, not_enough, unswept

from batchscope.errors import CannotAnswer
from batchscope.records import NoiseResult
from batchscope.references import cite
from batchscope.report import words
from batchscope.report.noise_facts import facts_of
from batchscope.report.noise_html import list_figures, write_noise
from batchscope.report.noise_words import answer_sentences, cell, measures, proxy_sentences

# legend entries and axis labels that stick out of their chart's box, and pairs of labels of one axis that overlap
SPILLED = """[...document.querySelectorAll('.chart')].flatMap(chart => {
    const outer = chart.getBoundingClientRect();
    const texts = [...chart.querySelectorAll('svg text')].filter(t => t.textContent && getComputedStyle(t).opacity > 0);
    return texts.filter(t => {
        const box = t.getBoundingClientRect();
        return box.width && (box.left < outer.left - 1 || box.right > outer.right + 1);
    }).map(t => t.textContent);
})"""


@pytest.mark.browser
@needs_browser
def test_opens_offline_without_a_request_or_a_complaint_and_draws_every_figure(browser: Any, tmp_path: Path) -> None:
    page = write_noise(mixed_windows(), tmp_path / "page.html")
    visit = Visit(browser, page)
    assert visit.requests == [page.as_uri()]
    assert visit.complaints == []
    charts = visit.page.query_selector_all(".chart")
    assert len(charts) == 6
    for chart in charts:
        drawn = chart.query_selector_all("svg .role-mark path, svg .role-mark rect, svg .role-mark line")
        assert len(drawn) > 8, chart.get_attribute("aria-label")
    titles = [h.inner_text().split(". ")[1] for h in visit.page.query_selector_all("figure h3")]
    assert titles == [f.title for f in list_figures(noise())]


@pytest.mark.browser
@needs_browser
def test_a_phone_scrolls_the_tables_and_not_the_page_and_cuts_no_label(browser: Any, tmp_path: Path) -> None:
    visit = Visit(browser, write_noise(noise(), tmp_path / "page.html"), width=390)
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert visit.page.evaluate(SPILLED) == []


@pytest.mark.browser
@needs_browser
def test_hostile_names_show_as_text(browser: Any, tmp_path: Path) -> None:
    visit = Visit(browser, write_noise(hostile(), tmp_path / "page.html"))
    assert visit.complaints == []
    for place in ("h1", ".goal", ".found", "#panel-0", "tbody th >> nth=-1", "dl", ".notes"):
        assert HOSTILE in visit.page.inner_text(place), place
    assert visit.page.title() == f"Noise: {HOSTILE}"


def test_a_hostile_name_never_reaches_the_page_unescaped(tmp_path: Path) -> None:
    text = write_noise(hostile(), tmp_path / "page.html").read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert "<script>alert" not in text
    assert len(re.findall(r"<script[ >]", text)) == text.count("</script>") == 4


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_every_noise_run_has_a_page_that_begins_with_its_answer(
    make: Callable[[], NoiseResult], tmp_path: Path
) -> None:
    result = make()
    page = write_noise(result, tmp_path / "page.html")
    text = text_of(page)
    assert page.stat().st_size < 3_000_000
    places = [text.index(" ".join(s.split())) for s in answer_sentences(result, "–")]
    assert places == sorted(places)
    assert places[-1] < text.index("Windows of the run")
    assert "None" not in text
    assert "nan" not in text.lower().split()


@pytest.mark.parametrize("make", [noise, mixed_windows, at_least])
def test_the_tables_hold_every_number_with_its_interval(make: Callable[[], NoiseResult], tmp_path: Path) -> None:
    result = make()
    text = text_of(write_noise(result, tmp_path / "page.html"))
    scales = [result.run_average, *(p.scale for p in result.points), *result.layers.values(), *result.proxies.values()]
    for m in [m for s in scales for m in measures(s)]:
        assert cell(m, "–") in text
    for p in [p for c in result.principles for p in c.points[:-1]]:
        assert f"{words.count(p.batch_size)} {cell(p.deviation, '–')} {cell(p.predicted, '–')}" in text
    for name, value in facts_of(result):
        assert f"{name} {value}" in text
    for sentence in proxy_sentences(result):
        assert sentence in text
    for line in cite(result).splitlines():
        assert line in text


def test_figures_come_in_reading_order_and_only_where_there_is_something_to_draw() -> None:
    assert [len(f.panels) for f in list_figures(noise())] == [1, 1, 1, 3]
    assert [len(f.panels) for f in list_figures(unswept())] == [1, 1, 1]
    assert list_figures(not_enough()) == []


def test_captions_say_what_is_not_drawn() -> None:
    scale, loss, parts, principle = (f.caption for f in list_figures(mixed_windows()))
    assert "3 give only a bound and 1 gives no value and so no mark" in scale
    assert "B_crit is what the runs of study abc123def456 took" in scale
    assert "have no loss and no mark: 1 of 12" in loss
    assert "downward triangle at the upper end" in parts
    assert "At B = N the value is 0" in principle
    *_, alone = (f.caption for f in list_figures(at_least()))
    assert alone.startswith("At step 384 (24,576 examples, training loss 0.915), where B_simple is > 100 examples.")


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    text = text_of(write_noise(not_enough(), tmp_path / "a.html"))
    for sentence in (
        "Nothing that was measured can be drawn.",
        "The run is too short for windows.",
        "Batch gradients were not held against the full gradient in this run.",
        "Layers were not told apart.",
    ):
        assert sentence in text
    assert "Proxies for other optimisers" not in text


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CannotAnswer, match=r"could not be written to .*gone.*No such file or directory"):
        write_noise(noise(), tmp_path / "gone" / "page.html")


def test_a_missing_library_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "altair", None)
    with pytest.raises(CannotAnswer, match=r"pip install 'batchscope\[report\]'"):
        write_noise(noise(), tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []
