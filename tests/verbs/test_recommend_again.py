"""Does `recommend` spend nothing twice: asked again, stopped and resumed, with another budget, on more workers?"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import batchscope as bs
from batchscope.analysis.advice import advice_to_json
from batchscope.records import Advice, Conditions, TrialSpec
from batchscope.store.sqlite import open_store
from batchscope.sweep.executors.base import Executor
from batchscope.task import Task, load_task
from batchscope.training.device import pick_device, set_up

from .conftest import SMALL
from .hard_tasks import KNEE, advise, made_up_timing
from .studies import Heard, hearing, kinds

BUDGET = 8.0  # reference runs


def said(advice: Advice) -> dict[str, Any]:
    """What `--json` says, clock readings and the page's path apart."""
    plain = advice_to_json(advice)
    return plain | {"report": None, "spent": plain["spent"] | {"seconds": 0.0}}


def specs(heard: Heard, kind: str) -> list[TrialSpec]:
    return [details["spec"] for details in kinds(heard, kind)]


class First(NamedTuple):
    """An undisturbed advice on the small task, what was heard of it, and its store."""

    advice: Advice
    heard: Heard
    path: Path

    @property
    def runs(self) -> set[str]:
        return {spec.key() for spec in specs(self.heard, "finished")}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> First:
    path, heard = tmp_path_factory.mktemp("first") / "a.db", []
    advice = advise(load_task(str(SMALL)), path, budget=BUDGET, listen=hearing(heard))
    return First(advice, heard, path)


@pytest.fixture
def copied(first: First, path: Path) -> Path:
    """A copy of its store."""
    return Path(shutil.copy(first.path, path))


def test_every_run_is_one_trial_of_the_store(first: First) -> None:
    assert len(specs(first.heard, "finished")) == len(first.runs) == len(first.advice.data.trials) > 3


def test_asked_again_it_runs_nothing_and_says_the_same(first: First, small: Task, copied: Path) -> None:
    heard: Heard = []
    advice = advise(small, copied, budget=BUDGET, listen=hearing(heard))
    assert heard == []
    assert advice == first.advice
    with open_store(copied, read_only=True) as store:
        assert len(store.advices()) == 1


def test_decided_anew_it_uses_what_was_run(first: First, small: Task, copied: Path) -> None:
    heard: Heard = []
    advice = advise(small, copied, budget=BUDGET, again=True, listen=hearing(heard))
    assert kinds(heard, "started") == []
    assert {spec.key() for spec in specs(heard, "stored")} == first.runs
    assert said(advice) == said(first.advice)


@pytest.mark.parametrize(("moment", "kind"), [(0, "line"), (1, "finished"), (2, "line"), (4, "finished")])
def test_stopped_and_resumed_it_runs_the_same_trials(
    first: First, small: Task, path: Path, moment: int, kind: str
) -> None:
    """At the end of a trial, and inside one, at its third evaluation; the first one's noise scale is of all of it."""
    finished, lines = [], [0]

    def stop(what: str, details: dict[str, Any]) -> None:
        if what == "finished":
            finished.append((what, details))
        lines[0] = lines[0] + 1 if what == "line" else 0
        if len(finished) == moment and what == kind and (what == "finished" or lines[0] == 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        advise(small, path, budget=BUDGET, listen=stop, checkpoint_seconds=0.0)
    heard: Heard = []
    advice = advise(small, path, budget=BUDGET, listen=hearing(heard), checkpoint_seconds=0.0)
    before = {spec.key() for spec in specs(finished, "finished")}
    after = {spec.key() for spec in specs(heard, "finished")}
    assert not before & after
    assert before | after == first.runs
    assert said(advice) == said(first.advice)
    assert not path.with_name("a.db.checkpoints").exists()


def test_other_questions_share_its_runs(first: First, small: Task, copied: Path, tmp_path: Path) -> None:
    """The same answers as with a store of their own; the reference run at least is there already."""
    heard: Heard = []
    shared = advise(small, copied, budget=4.0, listen=hearing(heard))
    assert {spec.key() for spec in specs(heard, "stored")} & first.runs
    assert shared.spent.examples == sum(t.examples for t in shared.data.trials)  # in full, as if it had run alone
    alone = advise(small, tmp_path / "b.db", budget=4.0)
    assert said(shared) == said(alone)
    heard.clear()
    priced = advise(small, copied, budget=BUDGET, objective="cost", price=3.6, listen=hearing(heard))
    assert kinds(heard, "started") == []  # one device: the cheapest is the fastest
    assert priced.chosen is not None
    assert priced.chosen.cost.estimate == pytest.approx((priced.chosen.seconds_to_goal.estimate or 0.0) * 3.6 / 3600)


def test_seeds_are_other_runs(small: Task, copied: Path) -> None:
    heard: Heard = []
    advise(small, copied, budget=2.0, seed=1, listen=hearing(heard))
    assert kinds(heard, "stored") == []
    assert {spec.seed for spec in specs(heard, "finished")} == {1000}


def test_two_workers_decide_as_this_process_does(first: First, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many trials run at once changes no decision."""
    conditions = set_up(1, pick_device(), "fp32")

    def two(executor: Executor, *_: Any) -> tuple[int, Conditions]:
        return 2, conditions

    monkeypatch.setattr("batchscope.verbs.deciding.choose", two)
    heard: Heard = []
    at_once: list[int] = []
    running = 0

    def listen(kind: str, details: dict[str, Any]) -> None:
        nonlocal running
        running += {"started": 1, "finished": -1}.get(kind, 0)
        at_once.append(running)
        heard.append((kind, details))

    timing = made_up_timing(load_task(str(SMALL)), KNEE)
    advice = advise(str(SMALL), path, budget=BUDGET, timing=timing, listen=listen)
    assert max(at_once) == 2
    assert {spec.key() for spec in specs(heard, "finished")} == first.runs
    assert said(advice) == said(first.advice)


def test_a_changed_task_is_served_no_stale_run(small: Task, copied: Path) -> None:
    heard: Heard = []
    advise(dataclasses.replace(small, goal=bs.Goal("loss", at_most=0.6)), copied, budget=2.0, listen=hearing(heard))
    assert (len(kinds(heard, "finished")), kinds(heard, "stored")) == (1, [])
