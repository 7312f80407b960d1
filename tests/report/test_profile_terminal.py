"""Does the terminal show every number of a profile whole, and every name as it is?"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import pytest
from made_up_profile import ALL, HOSTILE, hostile, nothing_fits, odd_outcomes, profile
from rich.console import Console

from batchscope.analysis.step_time import scaled
from batchscope.records import ProfileResult
from batchscope.report import words
from batchscope.report.profile_terminal import print_profile
from batchscope.report.profile_words import answer_sentences, size_of


def printed(result: ProfileResult, **options: Any) -> str:
    """What `print_profile` writes."""
    file = io.StringIO()
    print_profile(result, Console(file=file, **options))
    return file.getvalue()


def numbers_of(result: ProfileResult) -> set[str]:
    """Every measured number of the tables as it is written, word by word."""
    cells = set()
    for r in result.rows:
        parts = (r.seconds_per_step, r.data_wait, r.copy, r.compute, r.optimizer)
        cells |= {words.measured(scaled(m, 1e3)) for m in parts if m is not None}
        cells |= {words.measured(r.units_per_second), words.count(r.micro_batch_size)}
    cells |= {words.measured(scaled(s.seconds_per_step, 1e3)) for s in result.splits}
    for p in result.memory.probes if result.memory is not None else ():
        cells |= {size_of(p.peak_bytes), size_of(p.training_bytes)}
    return {word for c in cells for word in c.split()}


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_plain_output_is_plain_and_fits_120_columns(make: Callable[[], ProfileResult]) -> None:
    text = printed(dataclasses.replace(make(), report=None))
    assert "\x1b" not in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("cuda", [False, True])
def test_a_terminal_shows_every_number_whole(width: int, cuda: bool) -> None:
    result = profile(cuda=cuda)
    text = printed(result, force_terminal=True, width=width, color_system=None)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    tokens = {t.lstrip("~") for t in text.split()}
    assert numbers_of(result) <= tokens


def test_the_answer_comes_first_and_every_table_says_whose_loop() -> None:
    result = profile(loop="Lightning")
    lines = printed(result).splitlines()
    assert lines[2] == answer_sentences(result)[0]
    titles = [line for line in lines if line.startswith(("Seconds and bytes", "Where a step", "Batch sizes as"))]
    assert len(titles) == 3
    assert all("the loop named “Lightning”" in t for t in titles)


def test_outcomes_and_reasons_are_all_told() -> None:
    text = printed(odd_outcomes())
    for outcome in ("fits", "fits, with allocator retries", "out of memory", "crashed", "timed out"):
        assert outcome in text
    assert "Micro-batch 16,384, out of memory: The process was ended by SIGKILL in training." in text
    assert "FLOPs: 8.4M per example" in text
    assert "Energy: not measured" in text


def test_nothing_that_fits_is_an_answer() -> None:
    text = printed(nothing_fits())
    assert "Not even a micro-batch of 1 fits." in text
    assert "Seconds and bytes by" not in text


@pytest.mark.parametrize("name", ["[bold red]x[/]", "[/]", "a\x1b[31mb", ":smile: [link=x]"])
def test_names_are_never_markup(name: str) -> None:
    result = dataclasses.replace(profile(name=name), report=f"/tmp/{name}", notes=(f"on {name}",))
    for options in ({}, {"force_terminal": True, "width": 200, "color_system": None}):
        text = printed(result, **options)
        assert text.count(words.plain(name)) == 3
        assert "\x1b[31m" not in text


def test_a_hostile_profile_prints() -> None:
    assert HOSTILE in printed(hostile())
