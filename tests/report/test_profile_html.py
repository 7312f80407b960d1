"""Is a profile's page one file that opens offline, draws its axis, and shows every name as text?"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import Visit, needs_browser, text_of
from made_up import study
from made_up_profile import ALL, HOSTILE, hostile, loader_bound, nothing_fits, odd_outcomes, one_window, profile

from batchscope.analysis.step_time import scaled
from batchscope.errors import CannotAnswer
from batchscope.records import ProfileResult
from batchscope.report import words
from batchscope.report.html import write_report
from batchscope.report.profile_html import write_profile
from batchscope.report.profile_words import answer_sentences

# the plot areas of all charts, from the lines of their horizontal axes
PLOTS = """[...document.querySelectorAll('.stacked .chart svg')].map(s => {
    const box = s.querySelector('.role-axis[aria-label^="X-axis"] .role-axis-domain line').getBoundingClientRect();
    return [box.left, box.right];
})"""


@pytest.mark.browser
@needs_browser
def test_opens_offline_without_a_request_or_a_complaint_and_lines_up(browser: Any, tmp_path: Path) -> None:
    page = write_profile(profile(cuda=True), tmp_path / "page.html")
    visit = Visit(browser, page)
    assert visit.requests == [page.as_uri()]
    assert visit.complaints == []
    charts = visit.page.query_selector_all(".chart")
    assert len(charts) == 3
    for chart in charts:
        drawn = chart.query_selector_all("svg .role-mark path, svg .role-mark rect, svg .role-mark line")
        assert len(drawn) > 2, chart.get_attribute("aria-label")
    above, below = visit.page.evaluate(PLOTS)
    assert above == pytest.approx(below, abs=0.6)


@pytest.mark.browser
@needs_browser
def test_a_phone_scrolls_the_tables_and_not_the_page(browser: Any, tmp_path: Path) -> None:
    visit = Visit(browser, write_profile(odd_outcomes(), tmp_path / "page.html"), width=390)
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
    above, below = visit.page.evaluate(PLOTS)
    assert above == pytest.approx(below, abs=0.6)
    assert 200 < above[1] - above[0] < 390


@pytest.mark.browser
@needs_browser
def test_hostile_names_show_as_text(browser: Any, tmp_path: Path) -> None:
    visit = Visit(browser, write_profile(hostile(), tmp_path / "page.html"))
    assert visit.complaints == []
    for place in ("h1", ".goal", ".found", "#panel-0", "thead", "caption", "dl", ".notes"):
        assert HOSTILE in visit.page.inner_text(place), place
    assert visit.page.title() == f"Profile: {HOSTILE}"


def test_a_hostile_name_never_reaches_the_page_unescaped(tmp_path: Path) -> None:
    text = write_profile(hostile(), tmp_path / "page.html").read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert "<script>alert" not in text
    assert len(re.findall(r"<script[ >]", text)) == text.count("</script>") == 4


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_every_profile_has_a_page_that_begins_with_its_answer(
    make: Callable[[], ProfileResult], tmp_path: Path
) -> None:
    result = make()
    page = write_profile(result, tmp_path / "page.html")
    text = text_of(page)
    assert page.stat().st_size < 3_000_000
    places = [text.index(" ".join(s.split())) for s in answer_sentences(result, "–")]
    assert places == sorted(places)
    assert places[-1] < text.index("Figure 1.")
    assert "None" not in text
    assert "nan" not in text.lower().split()


def test_the_tables_hold_every_number(tmp_path: Path) -> None:
    result = profile(cuda=True)
    text = text_of(write_profile(result, tmp_path / "page.html"))
    for r in result.rows:
        for m in (r.seconds_per_step, r.data_wait, r.copy, r.compute, r.optimizer):
            assert m is not None
            assert words.measured(scaled(m, 1e3), dash="–") in text
    assert result.memory is not None
    for p in result.memory.probes:
        assert words.sentence(p.reason) in text
    for part in ("process", "weights", "gradients", "optimiser state", "activations"):
        assert part in text
    assert text.count("4,096 × 2") == 1
    assert "channels last, CUDA graphs replayed and next batch prefetched" in text


def test_every_caption_of_seconds_says_whose_loop(tmp_path: Path) -> None:
    raw = write_profile(profile(loop="Lightning"), tmp_path / "page.html").read_text(encoding="utf-8")
    captions = re.findall(r"(?s)<(?:caption><span|figcaption)>(.*?)</", raw)
    assert len(captions) == 6
    assert sum("the loop named “Lightning”" in c for c in captions) == 4  # the other two are of bytes alone


def test_a_study_shows_the_profile_of_its_task(tmp_path: Path) -> None:
    result, data = study(n_batch=2, seeds=1)
    without = write_report(result, data, tmp_path / "without.html").read_text(encoding="utf-8")
    known = dataclasses.replace(data, profile=profile(cuda=True).data)
    page = write_report(result, known, tmp_path / "with.html").read_text(encoding="utf-8")
    title = "Throughput and memory by micro-batch size"
    assert title not in without
    assert re.findall(r"<h3>Figure (\d+)\. ([^<]*)</h3>", page)[-1][1] == title
    assert page.count('class="chart"') == without.count('class="chart"') + 2
    assert "largest that ran 5,312" in page


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    plain = text_of(write_profile(profile(), tmp_path / "a.html"))
    assert "utilisation not measured: the device's peak is not known" in plain
    assert "Energy not measured" in plain
    assert "no interval" in text_of(write_profile(one_window(), tmp_path / "b.html"))
    none = text_of(write_profile(nothing_fits(), tmp_path / "c.html"))
    assert "Seconds per step were not measured." in none
    assert "No batch size was split into micro-batches." in none
    bound = text_of(write_profile(loader_bound(), tmp_path / "d.html"))
    assert "The task is loader-bound" in bound


def test_a_failed_write_leaves_the_old_page_and_no_scraps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "page.html"
    old.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(CannotAnswer, match="No space left on device"):
        write_profile(profile(), old)
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    assert old.read_text() == "old"


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CannotAnswer, match=r"could not be written to .*gone.*No such file or directory"):
        write_profile(profile(), tmp_path / "gone" / "page.html")


@pytest.mark.parametrize("module", ["altair", "vl_convert", "jinja2"])
def test_a_missing_library_is_one_sentence(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(CannotAnswer, match=r"pip install 'batchscope\[report\]'"):
        write_profile(profile(), tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []
