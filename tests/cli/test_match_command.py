"""Does `batchscope match` print one JSON object, a table or a plan, and refuse in one sentence?"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchscope.store.sqlite import open_store

from .conftest import Here, sentence

TASKS = Path(__file__).parents[1] / "verbs" / "match_tasks.py"
EASY = f"{TASKS}:easy"
ASKED = ("--batch-size", "16", "--no-ladder", "--seeds", "2")
TWO = ("--remedies", "linear scaling; weight averaging + SAM")


def numbers(value: Any) -> Iterator[float]:
    """All that stand anywhere in it."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers(part)
    elif isinstance(value, int | float):
        yield value


@pytest.mark.usefixtures("one_core")
def test_json_is_one_object_and_again_it_is_the_same_for_nothing(here: Here, tmp_path: Path) -> None:
    asked = (EASY, *ASKED, "--remedies", "SAM + weight averaging;")
    ended = here("match", *asked, "--json")
    assert ended.code == 0, ended.err
    answer = json.loads(ended.out)
    assert all(map(math.isfinite, numbers(answer)))
    assert (answer["task"], answer["baseline"]["batch_size"]) == ("easy", 4)
    assert [row["batch_size"] for row in answer["untuned"]] == [16]
    assert {row["remedy"] for row in answer["rows"]} == {"none", "SAM + weight averaging"}
    assert answer["largest"]["batch_size"] == 16
    assert all(row["seconds_per_step"]["estimate"] > 0 for row in answer["rows"] if row["role"] == "confirmed")
    assert Path(answer["report"]).read_text().startswith("<!doctype html>")
    assert "B=16" in ended.err
    with open_store("batchscope.db", read_only=True) as store:
        (found, data), *more = store.matches()
        assert (more, data.question.remedies) == ([], ("none", "SAM + weight averaging"))
    again = here("match", *asked, "--no-report")
    assert (again.code, "B=16" in again.err) == (0, False)
    assert answer["answer"].split()[0] in again.out
    assert "SAM" in again.out
    shown = json.loads(here("show", found, "--json").out)
    assert (shown["rows"], shown["answer"]) == (answer["rows"], answer["answer"])


@pytest.mark.usefixtures("one_core")
def test_a_task_that_trains_nowhere_is_no_answer(here: Here, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        f"import sys\nsys.path.insert(0, {str(TASKS.parent)!r})\nimport match_tasks\n"
        "def task():\n    return match_tasks.stiff(lr=200.0)\n"
    )
    ended = here("match", "mine.py", "--no-ladder", "--seeds", "1", "--remedies", "linear scaling")
    sentence(ended, 1, "expected its own batch size 4 to train at some learning rate", "give a learning rate")


def test_dry_run_trains_nothing_and_creates_no_store(here: Here, tmp_path: Path) -> None:
    ended = here("match", EASY, *ASKED, *TWO, "--dry-run")
    assert ended.code == 0
    assert "easy: batch size 16 against 4; 2 fresh seeds" in ended.out
    plan = json.loads(here("match", EASY, *ASKED, *TWO, "--dry-run", "--json").out)
    assert plan["raced"] == {"16": ["none", "linear scaling", "SAM + weight averaging"]}
    assert {"examples", "reference_runs", "seconds", "bytes"} == plan["at_most"].keys()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["--batch-size", "16", "--speedup", "4"], 2, ["a batch size or a speed-up, got both"]),
        (["--batch-size", "4"], 2, ["above the task's own 4", "write --batch-size 8"]),
        (["--batch-size", "65"], 2, ["64 training examples", "got 65"]),
        (["--batch-size", "16,many"], 2, ["whole numbers", "'16,many'", "--batch-size 512"]),
        (["--speedup", "0.5"], 2, ["a speed-up above 1, got 0.5"]),
        (["--speedup", "inf"], 2, ["a speed-up above 1, got inf"]),
        (["--remedies", "magic"], 2, ["expected the name of a remedy", "'magic'"]),
        (["--remedies", "LARS + LAMB"], 1, ["both set the optimiser", "leave one out"]),
        (["--confirm", "0"], 2, ["remedies to confirm from 1 up, got 0"]),
        (["--confirm", "most"], 2, ["expected --confirm as a number or all, got 'most'"]),
        (["--epochs", "-1"], 2, ["epochs above 0, got -1"]),
        (["--epochs", "nan"], 2, ["epochs above 0, got nan"]),
        (["--devices", "0"], 2, ["numbers of devices from 1 up, got 0"]),
        (["--budget", "0"], 2, ["budget in reference runs above 0"]),
        (["--seeds", "0"], 2, ["at least one seed, got 0"]),
        (["--seed", "-1"], 2, ["a seed from 0 up, got -1"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_what_cannot_be_asked_is_one_sentence(
    here: Here, tmp_path: Path, arguments: list[str], code: int, parts: list[str]
) -> None:
    sentence(here("match", EASY, *arguments), code, *parts)
    assert list(tmp_path.iterdir()) == []
    sentence(here("match", EASY, *arguments, "--dry-run", "--json"), code, *parts)
