"""Is `scale` measured once, kept, joined with the store's study, and refused in a sentence where it cannot be?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

import batchscope as bs
from batchscope.analysis.scaling_answer import scaling_to_json
from batchscope.errors import UsageError
from batchscope.records import ScalingResult
from batchscope.store.sqlite import open_store
from batchscope.task import Task
from batchscope.verbs import scale as verb

from .conftest import SMALL, Copies

REFERENCE = f"{SMALL}:task"
COUNTS = (1, 2, 4)


@pytest.fixture(autouse=True, scope="module")
def quickly() -> Generator[None]:
    """Five rounds are enough here; the machine of these tests has at least two cores to take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verb, "ROUNDS", 5)
        patch.setattr(verb, "devices_here", lambda: 2)
        yield


@pytest.fixture(scope="module")
def measured(finished: Copies, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a finished study, and of a `scale` at its batch sizes."""
    path = finished("both", tmp_path_factory.mktemp("scale") / "a.db")
    bs.scale(REFERENCE, devices=COUNTS, store=path, draw=False)
    return path


@pytest.fixture
def store(measured: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(measured, tmp_path / "a.db"))


@pytest.fixture
def not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be timed."""
    monkeypatch.setattr(verb, "GroupExecutor", None)


def ask(store: Path, **asked: Any) -> ScalingResult:
    return bs.scale(REFERENCE, **({"devices": COUNTS, "store": store, "draw": False} | asked))


@pytest.mark.usefixtures("not_measured")
def test_what_exists_is_measured_and_the_rest_predicted(store: Path) -> None:
    result = ask(store)
    assert {(r.devices, r.batch_size) for r in result.rows} == {(n, b) for n in (1, 2) for b in (16, 64)}
    assert {p.devices for p in result.predictions} == {4, 8, 16, 32, 64}
    assert {(p.devices, p.batch_size) for p in result.predictions if p.devices > 16} == {(32, 64), (64, 64)}
    assert all(p.seconds_per_step.low < p.seconds_per_step.high for p in result.predictions)
    assert any("cores of one machine that share its memory" in said for said in result.sentences)


@pytest.mark.usefixtures("not_measured")
def test_the_batch_sizes_and_steps_are_those_of_the_study(store: Path) -> None:
    result = ask(store)
    assert result.data.question.batch_sizes == (16, 64)
    assert [c.devices for c in result.choices] == [1, 2, 4, 8, 16, 32, 64]
    for choice in result.choices:
        assert choice.measured == (choice.devices <= 2)
        whole = choice.steps_to_goal.estimate * choice.seconds_per_step.estimate
        assert choice.seconds_to_goal.estimate == pytest.approx(whole)
    assert {(c.number, c.policy) for c in result.claims} == {(8, "both"), (9, "held"), (9, "tuned")}


@pytest.mark.usefixtures("not_measured")
def test_the_same_question_gives_the_same_answer_for_nothing(store: Path) -> None:
    assert scaling_to_json(ask(store)) == scaling_to_json(ask(store))


@pytest.mark.usefixtures("not_measured")
def test_another_link_is_answered_from_the_same_pass(store: Path) -> None:
    """Seconds on one device stay; those on two are predicted for the link."""
    slow = ask(store, network=(0.5, 1e9), largest=2)
    assert {(p.devices, p.batch_size) for p in slow.predictions if p.devices == 2} == {(2, 16), (2, 64)}
    assert all(p.seconds_per_step.estimate > 1.0 for p in slow.predictions)  # twice the latency
    assert slow.most_useful == 1
    assert {p.how for p in slow.predictions} == {"predicted over the link described"}


@pytest.mark.usefixtures("not_measured")
def test_the_answer_is_plain_json(store: Path) -> None:
    plain = json.loads(json.dumps(scaling_to_json(ask(store)), allow_nan=False))
    for key in ("rows", "network", "fit", "predictions", "choices", "most_useful", "claims", "sentences", "conditions"):
        assert key in plain, key
    assert plain["spent"]["steps"] > 0
    assert plain["gradient_bytes"] == 4 * (8 * 16 + 16 + 16 * 3 + 3)
    assert plain["sentences"]


@pytest.mark.usefixtures("not_measured")
def test_the_page_is_drawn(store: Path) -> None:
    result = ask(store, draw=True)
    page = Path(result.report).read_text()
    assert "small" in page
    assert Path(result.report).parent == store.parent


def test_again_measures_anew_and_keeps_both(store: Path) -> None:
    """On one device alone, which is quick: no averaging, nothing to predict but by a link that is described."""
    with open_store(store) as opened:
        before = len(opened.scalings())
    result = ask(store, devices=(1,), again=True, largest=8)
    assert {r.devices for r in result.rows} == {1}
    assert result.predictions == ()
    assert [c.devices for c in result.choices] == [1]
    assert "no step on several devices was timed" in result.fit.reason
    with open_store(store) as opened:
        assert len(opened.scalings()) == before + 1


def test_the_price_is_said_before_and_nothing_is_stored(tmp_path: Path) -> None:
    plan = verb.price_scaling(REFERENCE, devices=[1, 2, 8], batch_sizes=[16, 64], store=tmp_path / "none.db")
    assert (plan["measured"], plan["predicted"]) == ([1, 2], [8])
    assert plan["at_most"]["seconds"] > 0
    assert "1 and 2 devices" in plan["sentences"][0]
    assert "; 8 and powers of two up to 1,024 are predicted" in plan["sentences"][0]
    here = verb.price_scaling(REFERENCE, devices=[1, 2], batch_sizes=[16, 64], store=tmp_path / "none.db")
    assert "; powers of two up to 1,024 are predicted" in here["sentences"][0]
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"devices": [0]}, "expected device counts from 1 to"),
        ({"devices": [2.5]}, "expected device counts from 1 to"),
        ({"largest": 0}, "expected a largest device count from 1"),
        ({"network": (0.0, 1e9)}, "write --network 5us,25GB/s"),
        ({"network": (1e-6, 0.0)}, "write --network 5us,25GB/s"),
        ({"seed": -1}, "expected a seed from 0 up"),
        ({"batch_sizes": [10**6]}, "batch size"),
        ({"batch_sizes": []}, "batch size"),
    ],
)
@pytest.mark.usefixtures("not_measured")
def test_bad_questions_are_refused_in_a_sentence(tmp_path: Path, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        bs.scale(REFERENCE, store=tmp_path / "a.db", draw=False, **asked)


@pytest.mark.usefixtures("not_measured")
def test_an_object_is_refused_since_no_other_process_can_load_it(small: Task, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a reference to the task, got a Task object"):
        bs.scale(small, store=tmp_path / "a.db")
