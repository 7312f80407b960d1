"""Does `profile` measure what it says, store it, reuse it, and refuse what it cannot do?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import batchscope as bs
from batchscope.analysis.profile import profile_to_json
from batchscope.records import Conditions, ProfileData, ProfileResult, TimingPass
from batchscope.store.sqlite import open_store
from batchscope.task import Task
from batchscope.verbs import profile as verb
from batchscope.verbs.profile import grid

SMALL = Path(__file__).parents[1] / "sweep" / "small_task.py"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profile") / "a.db"


@pytest.fixture(scope="module")
def heard() -> list[tuple[str, dict]]:
    return []


@pytest.fixture(scope="module")
def result(store: Path, heard: list[tuple[str, dict]]) -> ProfileResult:
    """One real profile of the small task's file: memory in processes of its own, then seconds."""
    return bs.profile(str(SMALL), store=store, draw=False, listen=lambda kind, details: heard.append((kind, details)))


def test_memory_ends_at_the_data_set(result: ProfileResult) -> None:
    memory = result.memory
    assert memory is not None
    assert memory.largest_micro_batch_size == 256
    assert memory.binding == "data set"
    assert [p.outcome for p in memory.probes] == ["fits"] * len(memory.probes)
    assert "of the machine's" in memory.limit_is
    assert memory.largest_micro_batch_size in {p.micro_batch_size for p in memory.probes}


def test_rows_cover_the_grid(result: ProfileResult) -> None:
    assert [row.micro_batch_size for row in result.rows] == [8, 16, 32, 64, 128, 256]
    for row in result.rows:
        assert row.seconds_per_step.estimate is not None
        assert row.compute is not None
        assert row.bound_by in ("data", "compute", "optimizer")
    assert result.knee.estimate in {float(row.micro_batch_size) for row in result.rows}
    assert result.loop == "batchscope"


def test_splits_were_timed_beside_the_whole_batch(result: ProfileResult) -> None:
    measured = [split for split in result.splits if split.measured]
    assert {split.batch_size for split in measured} >= {64, 128, 256}
    assert all(split.accumulation == -(-split.batch_size // split.micro_batch_size) for split in measured)


def test_work_is_counted(result: ProfileResult, heard: list[tuple[str, dict]]) -> None:
    told = [details for kind, details in heard if kind == "progress"]
    assert result.data.examples == sum(line.get("examples", 0) for line in told) > 0
    assert result.data.steps == sum(line.get("steps", 0) for line in told) > 0
    assert [kind for kind, _ in heard].count("probe") == len(result.memory.probes if result.memory else ())


def test_json_is_strict_and_complete(result: ProfileResult) -> None:
    plain = json.loads(json.dumps(profile_to_json(result), allow_nan=False))
    assert {"task", "rows", "knee", "memory", "splits", "step_time", "conditions", "spent", "notes"} <= set(plain)
    assert plain["memory"]["largest_micro_batch_size"] == 256


def test_the_same_question_is_answered_from_the_store(result: ProfileResult, store: Path) -> None:
    heard: list[str] = []
    again = bs.profile(str(SMALL), store=store, draw=False, listen=lambda kind, details: heard.append(kind))
    assert again == result
    assert "phase" not in heard


def test_a_study_takes_its_seconds_from_the_profile(result: ProfileResult, store: Path) -> None:
    heard: list[dict] = []
    found = bs.study(
        str(SMALL),
        batch_sizes=(16, 64),
        policy="held",
        seeds=1,
        store=store,
        draw=False,
        listen=lambda kind, details: heard.append(details) if kind == "phase" else None,
    )
    assert not any("timing" in details["roles"] for details in heard)
    assert found.timing is not None
    assert result.data.timing is not None
    assert found.timing.timings == tuple(t for t in result.data.timing.timings if t.batch_size in (16, 64))
    assert found.settings.conditions == result.conditions


def test_a_task_object_has_seconds_and_no_memory(small: Task, tmp_path: Path) -> None:
    result = bs.profile(small, batch_sizes=(16, 64), store=tmp_path / "b.db", draw=False)
    assert result.memory is None
    assert any("need a task file" in note for note in result.notes)
    assert [row.micro_batch_size for row in result.rows] == [16, 64]


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({"devices": 2}, bs.CannotAnswer, "expected 1 device, got 2"),
        ({"memory_limit": 0}, bs.UsageError, "expected a memory limit in bytes above 0"),
        ({"memory_limit": 1.5}, bs.UsageError, "expected a memory limit in bytes above 0"),
        ({"batch_sizes": (16, 512)}, bs.UsageError, "expected batch sizes up to the 256 training examples"),
        ({"batch_sizes": ()}, bs.UsageError, "at least one batch size"),
        ({"seed": -1}, bs.UsageError, "expected a seed from 0 up"),
    ],
)
def test_bad_input_is_one_sentence(small: Task, tmp_path: Path, asked: dict, error: type, words: str) -> None:
    path = tmp_path / "c.db"
    with pytest.raises(error, match=words):
        bs.profile(small, store=path, draw=False, **asked)
    assert not path.exists()


def test_what_is_not_a_task_is_refused() -> None:
    with pytest.raises(bs.UsageError, match=r"expected a task reference or a bs\.Task, got int: write profile"):
        bs.profile(3)


def test_the_grid_has_the_own_size_and_ends_at_the_ceiling(small: Task) -> None:
    assert grid(small, None) == (8, 16, 32, 64, 128, 256)
    assert grid(small, 100) == (8, 16, 32, 64)
    assert grid(small, 5) == (4,)
    assert grid(small, 1) == (1,)


def test_a_study_checks_the_timing_it_is_given(small: Task, tmp_path: Path) -> None:
    empty = TimingPass(16, (), Conditions(), loop="mine")
    with pytest.raises(bs.UsageError, match="expected a timing of every batch size, got none of 16, 64"):
        bs.study(small, batch_sizes=(16, 64), store=tmp_path / "d.db", timing=empty)


def test_a_profile_with_other_conditions_is_not_reused(result: ProfileResult, store: Path) -> None:
    assert isinstance(result.data, ProfileData)
    with open_store(store) as opened:
        asked = verb.ask(str(SMALL))
        assert verb._stored(opened, asked)[0] == result.data
        other = verb.ask(str(SMALL), memory_limit=10**9)
        assert verb._stored(opened, other)[0] is None
