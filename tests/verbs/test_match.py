"""Does a match find what is known of its task, say what it leaves out, and lose nothing when it is stopped?"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import batchscope as bs
from batchscope.errors import CannotAnswer
from batchscope.records import NO_REMEDY, MatchData, MatchResult
from batchscope.store.sqlite import open_store
from batchscope.verbs.match import _Search

from .match_tasks import EPOCHS, OWN, TRAIN, easy, normed, stepped, stiff
from .studies import Heard, hearing, kinds

REMEDIES = ("linear scaling", "ghost batch norm")
Ask = Callable[..., MatchResult]
Matched = tuple[MatchResult, Heard, Path]


def asked(task: bs.Task, path: Path, **more: Any) -> MatchResult:
    """With two seeds and two remedies, one of which cannot be applied, unless the test says otherwise."""
    settings: dict[str, Any] = {"remedies": REMEDIES, "seeds": 2, "store": path, "draw": False}
    return bs.match(task, **settings | more)


@pytest.fixture
def ask(path: Path) -> Ask:
    """At batch size 16, without a ladder."""

    def ask(task: bs.Task, **more: Any) -> MatchResult:
        settings: dict[str, Any] = {"path": path, "batch_size": 16, "ladder": False}
        return asked(task, **settings | more)

    return ask


@pytest.fixture(scope="module")
def climbed(tmp_path_factory: pytest.TempPathFactory) -> Matched:
    """The easy task, up the ladder, with its page."""
    path, heard = tmp_path_factory.mktemp("climbed") / "a.db", []
    return asked(easy(), path, batch_size=16, draw=True, listen=hearing(heard)), heard, path


def data_of(path: Path) -> MatchData:
    """The newest match of a store."""
    with open_store(path, read_only=True) as store:
        return store.matches()[-1][1]


def verdicts(result: MatchResult) -> list[Any]:
    """All of a row that no clock has a part in."""
    rows = (result.baseline, *result.untuned, *result.rows)
    fields = ("batch_size", "remedy", "role", "learning_rate", "min_validation_loss", "excess", "bound", "verdict")
    to_goal = ("steps_to_goal", "examples_to_goal", "fewer_steps", "saves_steps")
    return [[getattr(row, name) for name in (*fields, *to_goal)] for row in rows]


def confirmed(result: MatchResult) -> list[int]:
    return sorted({row.batch_size for row in result.rows if row.role == "confirmed"})


# --- what is found ---


def test_where_any_batch_size_will_do_the_ladder_goes_up_to_all_data(climbed: Matched) -> None:
    result, _, path = climbed
    assert (result.baseline.role, result.baseline.batch_size, result.baseline.seeds) == ("baseline", OWN, 2)
    assert [row.batch_size for row in result.untuned] == confirmed(result) == [16, 32, TRAIN]
    assert {(r.remedy, r.verdict) for r in result.rows} == {(NO_REMEDY, "matches"), ("linear scaling", "matches")}
    for row in result.rows:  # the closed form of the task: its loss ends at 1, whatever the batch size
        assert row.min_validation_loss.estimate == pytest.approx(1, abs=1e-5)
        assert row.steps == EPOCHS * math.ceil(TRAIN / row.batch_size)
        assert row.seconds_per_step is not None
        assert row.seconds_per_step.estimate is not None
    assert result.largest is not None
    assert (result.largest.batch_size, result.largest.remedy) == (TRAIN, NO_REMEDY)
    assert result.largest.faster[1].estimate is not None
    assert "batch_size=64" in result.configuration
    data = data_of(path)
    assert [(t.remedy, [s.batch_size for s in t.timing.timings]) for t in data.timings] == [
        (NO_REMEDY, [OWN, 16, 32, TRAIN]),
        ("linear scaling", [16, 32, TRAIN]),
    ]
    assert Path(result.report).read_text().startswith("<!doctype html>")


def test_what_matches_saves_steps(climbed: Matched) -> None:
    result, _, _ = climbed
    own = result.baseline.steps_to_goal
    assert own is not None
    assert own.estimate is not None
    for row in result.rows:
        assert row.saves_steps
        assert row.fewer_steps is not None
        assert row.fewer_steps.low is not None
        assert row.fewer_steps.low > 1
        assert row.steps_to_goal is not None
        assert row.steps_to_goal.estimate is not None
        assert row.steps_to_goal.estimate < own.estimate


def test_what_cannot_be_applied_is_said_before_the_first_trial(climbed: Matched) -> None:
    result, heard, _ = climbed
    first = next(number for number, (kind, _) in enumerate(heard) if kind == "started")
    said = [details["text"] for kind, details in heard[:first] if kind == "note"]
    assert [text for text in said if "ghost batch norm is not raced: expected a model with batch norm" in text]
    assert {(c.batch_size, c.remedy) for c in result.cannot_apply} == {(16, "ghost batch norm")}


def test_where_steps_are_all_that_counts_the_ladder_goes_down_and_nothing_matches(ask: Ask) -> None:
    result = ask(stiff(), batch_size=32, ladder=True, remedies=("linear scaling",))
    assert confirmed(result) == [8, 16, 32]
    assert {row.verdict for row in result.rows} == {"does not"}
    assert all(gap.exists for gap in result.gaps)
    assert result.largest is None
    losses = {row.batch_size: row.min_validation_loss.estimate for row in result.rows if row.remedy == NO_REMEDY}
    rates = {row.batch_size: row.learning_rate for row in result.rows if row.remedy == NO_REMEDY}
    for size, loss in losses.items():  # w^2 / 2 = 50 within a few percent, and the steep direction is long gone
        left = (1 - 0.02 * rates[size]) ** (2 * EPOCHS * TRAIN / size)
        assert loss == pytest.approx(1 + 0.02 * 50 * left, rel=0.01)


@pytest.mark.parametrize(
    ("sizes", "matches_at", "run"),
    [((32,), (16, 8), [16, 32]), ((8, TRAIN), (8,), [8, 16, 32, TRAIN]), ((8, 32), (8, 32), [8, 32, TRAIN])],
    ids=["down to the first that matches", "down to one that was asked for", "up from the largest"],
)
def test_the_ladder_stops_where_it_has_its_answer(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...], matches_at: tuple[int, ...], run: list[int]
) -> None:
    monkeypatch.setattr(_Search, "_matching", lambda self, size: [NO_REMEDY] if size in matches_at else [])
    assert confirmed(ask(easy(), batch_size=sizes, ladder=True, remedies=(), seeds=1)) == run


def test_the_ladder_passes_over_what_the_model_cannot_be_trained_at(ask: Ask) -> None:
    """26, 13, 6: batches of 13 would leave batch norm one of 66 examples."""
    result = ask(normed(66, batch_size=3), batch_size=26, ladder=True, remedies=(), seeds=1)
    assert (confirmed(result), result.largest) == ([6, 26], None)


def test_without_a_ladder_only_what_was_asked_for(ask: Ask) -> None:
    result = ask(easy(), remedies=())
    assert (confirmed(result), len(result.rows)) == ([16], 1)
    assert result.rows[0].verdict == "matches"


@pytest.mark.parametrize("make", [stepped, lambda: easy(goal=None)], ids=["a step function, tokens", "no goal"])
def test_other_tasks(ask: Ask, make: Callable[[], bs.Task]) -> None:
    result = ask(make(), remedies=("linear scaling", "SAM"))
    assert {row.remedy for row in result.rows} >= {NO_REMEDY, "linear scaling"}
    assert result.baseline.reached == 2
    left_open = [note for note in result.notes if note.startswith("The goal was left open: ")]
    assert len(left_open) == (make().goal is None)


# --- repeated, stopped, elsewhere ---


def test_again_trains_nothing_and_says_the_same(climbed: Matched) -> None:
    result, _, path = climbed
    heard: Heard = []
    again = asked(easy(), path, batch_size=16, listen=hearing(heard))
    assert kinds(heard, "started") == []
    assert verdicts(again) == verdicts(result)
    assert again.spent.examples == result.spent.examples


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[MatchResult, Path]:
    path = tmp_path_factory.mktemp("undisturbed") / "a.db"
    return asked(stiff(), path, batch_size=16, ladder=False), path


@pytest.mark.parametrize("moment", [2, 15])
def test_after_ctrl_c_the_same_command_goes_on(
    ask: Ask, path: Path, undisturbed: tuple[MatchResult, Path], moment: int
) -> None:
    """Stopped at the end of a trial, and inside one; it ends with the bits of one that was not stopped elsewhere."""
    truth, there = undisturbed
    finished: list[int] = []

    def stop(kind: str, details: dict[str, Any]) -> None:
        if kind == "finished":
            finished.append(details["trial"])
        if len(finished) == moment and kind == ("line" if moment % 2 else "finished"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(stiff(), listen=stop, checkpoint_seconds=0.0)
    with open_store(path, read_only=True) as store:
        assert store.matches() == ()
    heard: Heard = []
    result = ask(stiff(), listen=hearing(heard), checkpoint_seconds=0.0)
    assert not {details["trial"] for details in kinds(heard, "started")} & set(finished)
    assert verdicts(result) == verdicts(truth)
    assert sorted(map(repr, data_of(path).runs)) == sorted(map(repr, data_of(there).runs))
    assert not path.with_name("a.db.checkpoints").exists()


# --- budgets ---


@pytest.mark.parametrize("budget", [12, 16, 40])
def test_the_budget_is_never_passed_and_what_it_leaves_out_is_said(ask: Ask, budget: float) -> None:
    """12 holds the baseline and no more; 16 one batch size of both; 40 all of them."""
    result = ask(stiff(), batch_size=(8, 16), remedies=(), budget=budget)
    assert result.spent.examples <= budget * EPOCHS * TRAIN
    left_out = [note for note in result.notes if "was left out: it might not have fitted into the budget" in note]
    assert (confirmed(result), len(left_out)) == {12: ([], 2), 16: ([8], 1), 40: ([8, 16], 0)}[int(budget)]
    assert result.largest is None


def test_a_budget_that_does_not_hold_the_baseline_is_refused_before_anything_is_trained(ask: Ask) -> None:
    heard: Heard = []
    with pytest.raises(
        CannotAnswer, match="a budget that holds the baseline, its tuning included, got 1 reference"
    ) as e:
        ask(stiff(), budget=1, listen=hearing(heard))
    assert kinds(heard, "started") == []
    assert "write --budget 12 or more" in str(e.value)


def test_what_trains_longer_counts_as_long_in_the_budget(ask: Ask) -> None:
    """Four times the examples for each of its runs: what a batch size fits without it, it does not fit with it."""
    kept = {name: confirmed(ask(easy(), remedies=(name,), seeds=1, budget=20)) for name in ("SAM", "train longer")}
    assert kept == {"SAM": [16], "train longer": []}


# --- no answer ---


def test_a_task_that_trains_nowhere_is_one_sentence(ask: Ask) -> None:
    with pytest.raises(CannotAnswer, match="expected its own batch size 4 to train at some learning rate about 200"):
        ask(stiff(lr=200.0))
