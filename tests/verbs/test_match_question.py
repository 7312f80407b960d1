"""Is what a match cannot answer refused in a sentence before anything is stored, and a question completed?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import batchscope as bs
from batchscope.errors import CannotAnswer, TaskError, UsageError
from batchscope.records import NO_REMEDY
from batchscope.verbs.match_question import ask_match, default_remedies

from .match_tasks import EPOCHS, TRAIN, easy, normed, stiff


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"batch_size": 16, "speedup": 4}, "expected a batch size or a speed-up, got both: leave one out"),
        ({"batch_size": 4}, "expected a batch size above the task's own 4"),
        ({"batch_size": 2}, "got 2: write --batch-size 8"),
        ({"batch_size": 65}, "up to the 64 training examples of 'easy', got 65"),
        ({"batch_size": (16, 16)}, "expected each batch size once, got 16 2 times"),
        ({"batch_size": ()}, "expected at least one batch size, got none"),
        ({"batch_size": 16.5}, "got 16.5"),
        ({"speedup": 1}, "expected a speed-up above 1, got 1"),
        ({"speedup": 17}, "up to the 64 training examples of 'easy', got 68: write --batch-size 8"),
        ({"speedup": math.nan}, "expected a speed-up above 1, got nan"),
        ({"speedup": math.inf}, "expected a speed-up above 1, got inf"),
        ({"confirm": 0}, "expected a number of remedies to confirm from 1 up, got 0"),
        ({"confirm": 2.0}, "got 2.0"),
        ({"epochs": -1}, "expected epochs above 0, got -1"),
        ({"epochs": math.nan}, "expected epochs above 0, got nan"),
        ({"epochs": math.inf}, "expected epochs above 0, got inf"),
        ({"epochs": 0.5, "batch_size": 16}, "at least 3 batches of 16, after each of which a goal has to hold, got 32"),
        ({"remedies": ("magic",)}, "expected the name of a remedy"),
        ({"remedies": ("SAM (rho=)",)}, "expected parameters of 'SAM'"),
        ({"devices": (0,)}, "expected numbers of devices from 1 up, got 0"),
        ({"seeds": 0}, "expected at least one seed, got 0"),
        ({"seed": -1}, "expected a seed from 0 up, got -1"),
        ({"budget": 0}, "expected a budget in reference runs above 0, got 0"),
    ],
    ids=str,
)
def test_a_malformed_call_is_refused_before_anything_is_stored(
    path: Path, asked: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UsageError) as caught:
        bs.match(easy(), **asked, store=path)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not path.exists()


def test_remedies_that_do_not_go_together_are_refused(path: Path) -> None:
    with pytest.raises(CannotAnswer, match="which both set the optimiser"):
        bs.match(easy(), remedies=("LARS + LAMB",), store=path)
    assert not path.exists()


def test_something_else_than_a_task_is_refused() -> None:
    with pytest.raises(UsageError, match=r"expected a task reference or a bs.Task, got int"):
        ask_match(3)


def test_a_task_that_trains_on_all_its_data_has_no_larger_batch() -> None:
    with pytest.raises(UsageError, match=r"got 128: lower the task's batch_size"):
        ask_match(easy(batch_size=TRAIN))


def test_names_are_those_that_remedies_have_themselves() -> None:
    """In any order, with defaults written out, twice: once each, the plain large batch first."""
    names = ("ghost batch norm + linear scaling", "linear scaling + ghost batch norm", "SAM (rho=0.05)", "SAM")
    question = ask_match(easy(), remedies=names).question
    assert question.remedies == (NO_REMEDY, "linear scaling + ghost batch norm", "SAM")


def test_by_default_all_remedies_but_what_takes_many_times_as_long() -> None:
    names = default_remedies()
    assert ask_match(easy()).question.remedies == names
    assert (names[0], len(set(names))) == (NO_REMEDY, len(names))
    assert {"LARS", "growing batch", "growing batch (rule='on plateau')"} <= set(names)
    assert "train longer" not in names


@pytest.mark.parametrize(
    ("changes", "asked", "size"),
    [({}, {}, 16), ({}, {"speedup": 2.5}, 10), ({"batch_size": 1}, {}, 16), ({"batch_size": 20}, {}, 40)],
    ids=["a quarter of the data", "by the speed-up", "16 times", "at least twice"],
)
def test_the_large_batch_where_none_is_given(changes: dict[str, Any], asked: dict[str, Any], size: int) -> None:
    assert ask_match(easy(**changes), **asked).question.batch_sizes == (size,)


def test_every_run_is_evaluated_as_often_up_to_the_top_of_the_ladder() -> None:
    """Quarters of an epoch, or batches where they are larger; the ladder's count, two doublings within the data."""
    plain, high = (ask_match(stiff(), batch_size=8, ladder=ladder) for ladder in (False, True))
    assert (plain.largest, plain.question.cadence_examples) == (8, EPOCHS * TRAIN // 60)
    assert (high.largest, high.question.cadence_examples) == (32, 32)
    assert high.question.budget_examples == EPOCHS * TRAIN
    assert ask_match(stiff(), batch_size=24).largest == 48
    assert ask_match(stiff(), batch_size=16, epochs=2).largest == 16  # else four evaluations a run


def test_batch_sizes_that_leave_batch_norm_one_example_are_refused_also_by_a_speed_up() -> None:
    """66 = 5 * 13 + 1."""
    task = normed(66, batch_size=4)
    with pytest.raises(TaskError, match=r"batch size 13 .* where batch norm has no variance over one example"):
        ask_match(task, batch_size=13)
    with pytest.raises(TaskError, match="batch size 13"):
        ask_match(task, speedup=13 / 4)
    assert ask_match(task, batch_size=14).question.batch_sizes == (14,)
