"""Does the terminal show every number of a noise run whole, and every name as it is?"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import pytest
from made_up_noise import ALL, HOSTILE, at_least, hostile, noise, not_enough, scale
from rich.console import Console

from batchscope.records import NoiseResult
from batchscope.report import words
from batchscope.report.noise_terminal import LAYERS_SHOWN, print_noise
from batchscope.report.noise_words import answer_sentences, cell, measures


def printed(result: NoiseResult, **options: Any) -> str:
    """What `print_noise` writes."""
    file = io.StringIO()
    print_noise(result, Console(file=file, **options))
    return file.getvalue()


def numbers_of(result: NoiseResult) -> set[str]:
    """Every measured number of the tables as it is written, word by word."""
    scales = [result.run_average, *(p.scale for p in result.points), *result.layers.values(), *result.proxies.values()]
    cells = {cell(m) for s in scales for m in measures(s)}
    cells |= {cell(m) for c in result.principles for p in c.points[:-1] for m in (p.deviation, p.predicted)}
    return {word for c in cells for word in c.split()}


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_plain_output_is_plain_and_fits_120_columns(make: Callable[[], NoiseResult]) -> None:
    text = printed(dataclasses.replace(make(), report=None))
    assert "\x1b" not in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("make", [noise, at_least])
def test_a_terminal_shows_every_number_whole(width: int, make: Callable[[], NoiseResult]) -> None:
    result = make()
    text = printed(result, force_terminal=True, width=width, color_system=None)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    assert numbers_of(result) <= set(text.split())


def test_the_answer_comes_first() -> None:
    for result in (noise(), not_enough()):
        first = printed(result, force_terminal=True, width=1000, color_system=None).splitlines()[2]
        assert first == answer_sentences(result)[0]


def test_every_table_has_its_title_and_an_empty_one_none() -> None:
    titles = ("Windows of the run", "E|g_B − G|² / |G|² at step 384", "Layers, by their share", "Proxies for other")
    text, none = printed(noise()), printed(not_enough())
    for title in titles:
        assert title in text
        assert title not in none
    assert "Interval: t on 16 draws, 15 df (measured deviations)" in text


def test_of_many_layers_the_largest_are_shown_and_the_rest_counted() -> None:
    layers = {f"layer{k}": scale(1.0 + k, 0.1) for k in range(40)}
    text = printed(noise(layers=layers))
    assert f"{40 - LAYERS_SHOWN} more are on the page" in text
    assert "layer39 " in text
    assert "layer0 " not in text


@pytest.mark.parametrize("name", ["[bold red]x[/]", "[/]", "a\x1b[31mb", ":smile: [link=x]"])
def test_names_are_never_markup(name: str) -> None:
    result = noise(task=name, layers={name: scale(1, 1)}, report=f"/tmp/{name}", notes=(f"on {name}",))
    for options in ({}, {"force_terminal": True, "width": 200, "color_system": None}):
        text = printed(result, **options)
        assert text.count(words.plain(name)) == 4
        assert "\x1b[31m" not in text


def test_a_hostile_noise_run_prints() -> None:
    assert HOSTILE in printed(hostile())
