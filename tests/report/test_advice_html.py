"""Is an advice's page one file that opens offline, begins with the decision, and moves it as its controls say?"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import Visit, needs_browser, text_of
from made_up_advice import SIZES, TRAIN_SIZE, advice
from made_up_answers import ALL, best_in, from_noise, hostile, memory_binds, not_answered, nothing_ran, one_size, priced
from made_up_profile import HOSTILE

from batchscope.errors import CannotAnswer
from batchscope.records import Advice
from batchscope.report.advice_facts import decision_table, facts_of, trials_table
from batchscope.report.advice_html import MOST_DRAWS, controls_of, list_figures, why_caption, write_advice
from batchscope.report.advice_words import sentences_of, snippet_of

MOVE = """([id, value]) => {
    const control = document.getElementById(id);
    control.value = value;
    control.dispatchEvent(new Event("input"));
}"""


def moved(visit: Visit, **values: object) -> str:
    """What the page says after its controls were set."""
    for name, value in values.items():
        visit.page.evaluate(MOVE, [name, str(value)])
    return " ".join(visit.page.inner_text("#moved").split())


def naive_times(made: Advice, devices: int) -> np.ndarray:
    """(draws, sizes) seconds to goal on several devices, number by number; the sizes on each device are timed ones."""
    assert made.curves is not None
    rows = []
    for examples, seconds in zip(made.curves.draws_log_examples, made.curves.draws_log_seconds, strict=True):
        row = []
        for k, b in enumerate(SIZES):
            steps = math.exp(examples[k]) * math.ceil(TRAIN_SIZE / b) / TRAIN_SIZE
            here = max(b // devices, SIZES[0])  # below the smallest that was timed a step takes as long
            row.append(steps * math.exp(seconds[SIZES.index(here)]))
        rows.append(row)
    return np.array(rows)


@pytest.mark.browser
@needs_browser
def test_opens_offline_without_a_request_or_a_complaint_and_draws_every_figure(browser: Any, tmp_path: Path) -> None:
    page = write_advice(memory_binds(), tmp_path / "page.html")
    visit = Visit(browser, page)
    assert visit.requests == [page.as_uri()]
    assert visit.complaints == []
    charts = visit.page.query_selector_all(".chart")
    assert len(charts) == 5
    for chart in charts:
        drawn = chart.query_selector_all("svg .role-mark path, svg .role-mark rect, svg .role-mark line")
        assert len(drawn) > 4, chart.get_attribute("aria-label")
    titles = [h.inner_text() for h in visit.page.query_selector_all("figure h3")]
    assert titles == [f"Figure {k}. {f.title}" for k, f in enumerate(list_figures(memory_binds()).values(), start=1)]
    visit.context.close()


@pytest.mark.browser
@needs_browser
def test_the_controls_move_the_recommendation_as_the_draws_say(browser: Any, tmp_path: Path) -> None:
    made = advice()
    visit = Visit(browser, write_advice(made, tmp_path / "page.html"))
    assert moved(visit).startswith("Batch size 128, learning rate 0.141, on 1 device")
    assert "This is the batch size recommended above." in moved(visit)
    for index, n in ((0, 1), (2, 4), (5, 32)):
        said, times = moved(visit, devices=index), naive_times(made, n)
        times = times[:, [b >= n for b in SIZES]]
        sizes = [b for b in SIZES if b >= n]
        best = int(np.argmin(np.log(times).mean(axis=0)))
        share = float(np.mean(times.argmin(axis=1) == best))
        low, middle, high = np.quantile(times[:, best], (0.05, 0.5, 0.95))
        assert said.startswith(f"Batch size {sizes[best]:,}, learning rate")
        assert f"with probability {round(100 * share)} %" in said
        assert f"{middle:.3g} s [{low:.3g}–{high:.3g}]" in re.sub(r"(\.\d)0(?=[ \]–])", r"\1", said).replace(".0", "")
        assert ("A lower bound: communication is not counted" in said) == (n > 1)
        mark = visit.page.query_selector("#moved-figure g:has(rect.moved)")
        assert mark is not None
        assert mark.get_attribute("data-size") == str(sizes[best])
    assert f"{n} devices" in said
    assert "The recommendation above, batch size 128, would take" in said
    visit.page.click("#reset")
    assert moved(visit).startswith("Batch size 128")
    visit.context.close()


@pytest.mark.browser
@needs_browser
def test_price_objective_and_keyboard(browser: Any, tmp_path: Path) -> None:
    made = priced()
    visit = Visit(browser, write_advice(made, tmp_path / "page.html"))
    assert visit.page.input_value("#price") == "2.4"
    assert visit.page.input_value("#objective") == "cost"
    assert made.chosen is not None
    assert made.chosen.cost.estimate is not None
    assert f"{made.chosen.cost.estimate:.3g} [" in moved(visit)
    assert f"{10 * made.chosen.cost.estimate:.3g} [" in moved(visit, price=24)
    assert "device hours" in moved(visit, price="")
    assert moved(visit, objective="examples").startswith("Batch size 16, learning rate")
    visit.page.focus("#devices")
    visit.page.keyboard.press("ArrowRight")
    assert visit.page.get_attribute("#devices", "aria-valuetext") == "2 devices"
    assert "on 2 devices" in moved(visit)
    assert "No batch size" not in moved(visit, devices=10)  # 1,024 devices: the sizes from 1,024 up
    visit.page.click("#copy")
    visit.page.wait_for_function("document.getElementById('copy').textContent !== 'Copy'")
    assert visit.complaints == []
    visit.context.close()


@pytest.mark.browser
@needs_browser
def test_ratios_and_one_size_move_too(browser: Any, tmp_path: Path) -> None:
    visit = Visit(browser, write_advice(from_noise(), tmp_path / "a.html"))
    assert "times the time of batch size 64 on one device" in moved(visit)
    assert " to the goal" not in moved(visit, devices=2)
    asked = dataclasses.replace(one_size().question, objective="energy")
    visit.page.goto(write_advice(dataclasses.replace(one_size(), question=asked), tmp_path / "b.html").as_uri())
    assert "The advice above is for least energy, which is not computed here." in moved(visit)
    assert moved(visit).startswith("Batch size 128")
    assert "No batch size that was compared gives each of 256 devices an example" in moved(visit, devices=8)
    assert visit.complaints == []
    visit.context.close()


@pytest.mark.browser
@needs_browser
def test_hostile_names_show_as_text_and_a_phone_scrolls_the_tables_alone(browser: Any, tmp_path: Path) -> None:
    visit = Visit(browser, write_advice(hostile(), tmp_path / "page.html"), width=390)
    assert visit.complaints == []
    for place in ("h1", ".goal", ".found", "dl >> nth=-1", ".notes"):
        assert HOSTILE in visit.page.inner_text(place), place
    assert visit.page.title() == f"Advice: {HOSTILE}"
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert visit.page.evaluate("document.getElementById('moved-figure').viewBox.baseVal.width") < 390
    visit.context.close()


def test_a_hostile_name_never_reaches_the_page_unescaped(tmp_path: Path) -> None:
    text = write_advice(hostile(), tmp_path / "page.html").read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert "<script>alert" not in text
    assert len(re.findall(r"<script[ >]", text)) == text.count("</script>") == 6


UNLIKE = (
    "unverified",
    "not answered",
    "nothing ran",
    "best in seconds",
    "from noise",
    "uneven",
    "energetic",
    "one size",
)


@pytest.mark.parametrize("name", UNLIKE)
def test_every_advice_has_a_page_that_begins_with_its_decision(name: str, tmp_path: Path) -> None:
    result = ALL[name]()
    page = write_advice(result, tmp_path / "page.html")
    text = text_of(page)
    assert page.stat().st_size < 3_000_000
    places = [text.index(" ".join(s.split())) for s in sentences_of(result)]
    assert places == sorted(places)
    first = text.find("Figure 1.")
    assert first == -1 or places[-1] < first
    assert " None" not in text
    assert "nan" not in text.lower().split()
    check_panels(page.read_text(encoding="utf-8"))
    lone = re.sub(r"(?s)<script.*?</script>", "", page.read_text(encoding="utf-8"))
    assert not re.search(r"(src|href)=\"(?!#|data:)", lone)


def check_panels(page: str) -> None:
    """Every panel has a label, and rows without holes; that they are JSON without nan is why they can be read."""
    text = re.search(r'(?s)id="panels">(.*?)</script>', page)
    assert text is not None
    labels = re.findall(r'class="chart" id="panel-\d+" role="img" aria-label="([^"]+)"', page)
    panels = json.loads(text[1])
    assert len(labels) == len(panels)
    for label, panel in zip(labels, panels, strict=True):
        assert "nan" not in label
        assert None not in [v for rows in panel["datasets"].values() for row in rows for v in row.values()]


def test_the_page_holds_every_number_of_its_tables_and_facts(tmp_path: Path) -> None:
    result = advice()
    text = text_of(write_advice(result, tmp_path / "page.html"))
    for table in (decision_table(result, "–"), trials_table(result, "–")):
        for row in table.rows:
            assert " ".join(row[1:]) in text
    for name, value in facts_of(result, "–"):
        assert f"{name} {value}" in text
    assert "128 recommended" in text
    assert "256 may be as good" in text
    assert " ".join(snippet_of(result).split()) in text


def test_the_words_of_the_record_are_used_where_it_has_some(tmp_path: Path) -> None:
    told = dataclasses.replace(advice(), sentences=("Said before.",), snippet="pasted = True")
    text = text_of(write_advice(told, tmp_path / "page.html"))
    assert "Said before." in text
    assert "pasted = True" in text


def test_the_controls_hold_the_draws_thinned_evenly() -> None:
    made = advice()
    held = controls_of(made)
    assert held is not None
    json.dumps(held, allow_nan=False)
    assert len(held["logExamples"]) == len(held["logSeconds"]) == 200
    assert held["chosen"] == SIZES.index(128)
    assert made.curves is not None
    many = dataclasses.replace(made.curves, draws_log_examples=made.curves.draws_log_examples * 7)
    thinned = controls_of(dataclasses.replace(made, curves=many))
    assert thinned is not None
    assert MOST_DRAWS / 2 < len(thinned["logExamples"]) <= MOST_DRAWS
    three = dataclasses.replace(made, question=dataclasses.replace(made.question, devices=3))
    odd = controls_of(three)
    assert odd is not None
    assert odd["counts"][:4] == [1, 2, 3, 4]


def test_no_controls_where_nothing_can_move(tmp_path: Path) -> None:
    for made in (not_answered(), nothing_ran(), best_in()):
        assert controls_of(made) is None
    page = write_advice(nothing_ran(), tmp_path / "page.html")
    assert 'id="controls"' not in page.read_text(encoding="utf-8")
    text = text_of(page)
    for said in (
        "No batch size reached the goal, so nothing can be predicted",
        "Nothing that was measured can be drawn.",
    ):
        assert said in text


def test_captions_say_what_is_drawn() -> None:
    whole, relative, loss, none = map(why_caption, (advice(), from_noise(), best_in(), not_answered()))
    assert "fitted law" in whole
    assert "ratios to batch size 64, from throughput and noise scale" in relative
    assert "lowest validation loss" in loss
    assert "No run reached the goal" in none
    for caption in (whole, relative, loss, none):
        assert "90 % intervals" in caption


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CannotAnswer, match=r"could not be written to .*gone.*No such file or directory"):
        write_advice(advice(), tmp_path / "gone" / "page.html")


def test_a_missing_library_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "altair", None)
    with pytest.raises(CannotAnswer, match=r"pip install 'batchscope\[report\]'"):
        write_advice(advice(), tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []
