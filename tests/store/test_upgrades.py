"""Do store files of older layouts open with all they hold, read-only and for writing?

The files in assets/ were written by the versions in their names and are never made anew. Version 1 was the first; 2
added the tasks that were seen and the view of curves, 3 the claim of the machine, 4 profiles, 5 noise runs, 6 advices,
7 scalings, 8 sharpnesses and parts, 9 matches.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from batchscope.errors import StoreError
from batchscope.records import Engine, PointSharpness, from_plain
from batchscope.store import Owner, Store, open_store
from batchscope.store import connection as opening
from batchscope.testing.example_match import make_small_match
from batchscope.testing.example_noise import make_noise_run
from batchscope.testing.example_profiles import at, make_profile
from batchscope.testing.example_scaling import make_scaling_data
from batchscope.testing.example_sharpness import make_point, make_small_sharpness
from batchscope.testing.examples import CHOICES, CONDITIONS, TIMING, bits, make_result, make_settings, make_spec
from batchscope.testing.store_advice import make_advice_data

ASSETS = Path(__file__).parent / "assets"
STUDIES = {1: "d60d3d9f5c14", 3: "d60d3d9f5c14"} | dict.fromkeys(
    (4, 5, 6, 7, 8), "e7fff750ad85"
)  # from 4: with an engine
FINGERPRINT = "0123456789abcdef"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study.db"


def old(version: int) -> Path:
    return ASSETS / f"version-{version}.sqlite"


def layout(path: Path) -> set[tuple[str, str]]:
    """Every table, index and view with its definition."""
    with sqlite3.connect(path) as db:
        found = set(db.execute("SELECT name, coalesce(sql, '') FROM sqlite_master"))
    db.close()
    return found


def assert_version_1_is_all_there(store: Store) -> None:
    """What the frozen file of version 1 holds, written out."""
    (summary,) = store.studies()
    assert (summary.id, summary.task, summary.trials, summary.finished_trials) == (STUDIES[1], "an old task", 2, 1)
    data = store.study_data(summary.id)
    assert data.settings == make_settings(task="an old task", fingerprint=FINGERPRINT)
    assert (data.timing, data.choices, data.notes) == (TIMING, CHOICES, ("an old note",))
    assert (data.reference_examples, data.reference_reached) == (2048.0, True)
    (record,) = data.held
    assert (record.spec, record.conditions, record.attempts) == (make_spec(0), CONDITIONS, 2)
    assert [e.validation["loss"] for e in record.result.trace] == [1.1, 0.55, 1.1 / 3]
    assert math.isnan(record.result.trace[0].update_norm)
    done, lost = store.trial_ids(summary.id, "held")
    assert [a.how for a in store.attempts(done)] == ["died", "finished"]
    assert [a.how for a in store.attempts(lost)] == [None]
    (before,) = store.other_fingerprints("an old task", "new")
    assert (before.fingerprint, before.components, before.trials) == (FINGERPRINT, {}, 1)
    assert store.profiles() == store.noise_runs() == store.advices() == ()


def assert_version_3_is_all_there(store: Store) -> None:
    """What the frozen file of version 3 holds, written out. Its conditions were stored without an engine."""
    assert_a_finished_study_is_all_there(store, STUDIES[3])
    assert store.study(STUDIES[3]).conditions.engine == Engine()
    assert store.profiles() == store.noise_runs() == store.advices() == ()


def assert_version_4_is_all_there(store: Store) -> None:
    """What the frozen file of version 4 holds: the same study, and two profiles, which keep their ids."""
    assert_a_finished_study_is_all_there(store, STUDIES[4])
    assert_two_profiles_are_all_there(store)
    assert store.noise_runs() == store.advices() == ()


def assert_version_5_is_all_there(store: Store) -> None:
    """What the frozen file of version 5 holds: what version 4's does, and two noise runs, which keep their ids."""
    assert_a_finished_study_is_all_there(store, STUDIES[5])
    assert_two_profiles_are_all_there(store)
    assert_two_noise_runs_are_all_there(store)
    assert store.advices() == ()


def assert_version_6_is_all_there(store: Store) -> None:
    """What the frozen file of version 6 holds: what version 5's does, and two advices, which keep their ids."""
    assert_a_finished_study_is_all_there(store, STUDIES[6])
    assert_two_profiles_are_all_there(store)
    assert_two_noise_runs_are_all_there(store)
    assert_two_advices_are_all_there(store)
    assert store.scalings() == ()


def assert_version_7_is_all_there(store: Store) -> None:
    """What the frozen file of version 7 holds: what version 6's does, and two scalings, which keep their ids."""
    assert_a_finished_study_is_all_there(store, STUDIES[7])
    assert_two_profiles_are_all_there(store)
    assert_two_noise_runs_are_all_there(store)
    assert_two_advices_are_all_there(store)
    newer = make_scaling_data((1, 2), (8, 32), 2, fingerprint=FINGERPRINT)
    older = make_scaling_data((1,), (), 2, fingerprint=FINGERPRINT, task="an old task", notes=(), measured_at=at(5))
    assert store.scalings(FINGERPRINT) == (("d3522d3dcd3b", newer), ("b9613b499e8b", older))
    assert store.study_data(STUDIES[7]).scaling == newer


def assert_version_8_is_all_there(store: Store) -> None:
    """What the frozen file of version 8 holds: what version 7's does, two sharpnesses, which keep their ids, a part."""
    assert_version_7_is_all_there(store)
    newer = make_small_sharpness(fingerprint=FINGERPRINT)
    older = make_small_sharpness(fingerprint=FINGERPRINT, task="an old task", points=(), measured_at=at(5))
    assert store.sharpnesses(FINGERPRINT) == (("95c2271988f8", newer), ("879a29306638", older))
    assert from_plain(PointSharpness, store.part("an old key")) == make_point()
    assert store.matches(FINGERPRINT) == ()


def assert_two_advices_are_all_there(store: Store) -> None:
    """What the files of versions 6 to 8 share beside study, profiles and noise runs."""
    newer = make_advice_data(fingerprint=FINGERPRINT)
    older = dataclasses.replace(newer, task="an old task", goal=None, provisional_goal=None, trials=())
    assert store.advices(FINGERPRINT) == (
        ("38f1e0958a93", newer),
        ("bea78a3d9c20", dataclasses.replace(older, measured_at=at(5))),
    )


def assert_two_noise_runs_are_all_there(store: Store) -> None:
    """What the files of versions 5 to 8 share beside study and profiles."""
    newer = make_noise_run(fingerprint=FINGERPRINT)
    older = make_noise_run(fingerprint=FINGERPRINT, task="an old task", measurements=(), measured_at=at(5))
    assert store.noise_runs() == (("39acdff63616", newer), ("ab134d24aed5", older))
    assert [summary.measurements for summary in store.noise_summaries()] == [0, 3]


def assert_two_profiles_are_all_there(store: Store) -> None:
    """What the files of versions 4 to 8 share beside the study."""
    newer = make_profile(fingerprint=FINGERPRINT)
    older = make_profile(fingerprint=FINGERPRINT, task="an old task", timing=None, measured_at=at(5))
    assert store.profiles() == (("c50dc55702e8", newer), ("5c58f2814848", older))
    assert store.study_data(STUDIES[4]).profile == newer


def assert_a_finished_study_is_all_there(store: Store, study: str) -> None:
    """What the files of versions 3 to 8 share: one trial finished in each role, one more lost."""
    (summary,) = store.studies()
    assert (summary.id, summary.task, summary.trials, summary.finished_trials) == (study, "an old task", 5, 4)
    assert summary.finished_at is not None
    assert store.newest_tuned_study(FINGERPRINT) == study
    data = store.study_data(study)
    assert data.settings == make_settings(task="an old task", fingerprint=FINGERPRINT)
    assert (data.timing, data.choices, data.notes) == (TIMING, CHOICES, ("an old note",))
    assert (data.reference_examples, data.reference_reached) == (2048.0, True)
    for seed, (record,) in enumerate((data.held, data.tuned, data.tuning, data.reference)):
        assert (record.spec, record.conditions, record.attempts) == (make_spec(seed), CONDITIONS, 1 if seed else 2)
        assert bits(record.result) == bits(make_result(seed))
    done, lost = store.trial_ids(study, "held")
    assert [(a.how, a.reason) for a in store.attempts(done)] == [("died", "killed by signal 9"), ("finished", "")]
    assert [a.how for a in store.attempts(lost)] == [None]
    (before,) = store.other_fingerprints("an old task", "new")
    assert (before.fingerprint, before.components) == (FINGERPRINT, {"data": "d1", "gradient": "g1"})
    assert before.trials == 4


CHECKS = {
    1: assert_version_1_is_all_there,
    3: assert_version_3_is_all_there,
    4: assert_version_4_is_all_there,
    5: assert_version_5_is_all_there,
    6: assert_version_6_is_all_there,
    7: assert_version_7_is_all_there,
    8: assert_version_8_is_all_there,
}
each_version = pytest.mark.parametrize(("version", "is_all_there"), CHECKS.items(), ids=lambda value: str(value)[:1])


@each_version
def test_an_old_store_is_upgraded_with_all_it_holds(
    path: Path, tmp_path: Path, version: int, is_all_there: Callable[[Store], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 2e9)  # by then the old claim and leases have run out
    shutil.copy(old(version), path)
    with open_store(path) as store:
        is_all_there(store)
    with open_store(path) as store:  # upgraded now
        is_all_there(store)
        assert store.claim_machine(Owner.here(), 0.0) == "alone"
        study = STUDIES[version]
        assert store.lease(store.trial_ids(study, "held")[1], Owner.here(), 60).attempt == 2
        profile = make_profile(fingerprint=FINGERPRINT, measured_at=at(13))
        assert store.profile(store.save_profile(profile)) == store.study_data(study).profile == profile
        run, data, scaling = make_noise_run(), make_advice_data(), make_scaling_data()
        sharp, match = make_small_sharpness(), make_small_match()
        assert store.noise_runs(run.fingerprint) == store.advices(data.fingerprint) == ()
        assert store.scalings(scaling.fingerprint) == store.sharpnesses(sharp.fingerprint) == store.matches() == ()
        assert ((store.save_noise_run(run), run),) == store.noise_runs(run.fingerprint)
        assert ((store.save_advice(data), data),) == store.advices(data.fingerprint)
        assert ((store.save_scaling(scaling), scaling),) == store.scalings(scaling.fingerprint)
        assert ((store.save_sharpness(sharp), sharp),) == store.sharpnesses(sharp.fingerprint)
        assert ((store.save_match(match), match),) == store.matches()
        assert store.part("a key") is None
        store.save_part("a key", FINGERPRINT, "point", sharp.points[0])
        assert from_plain(PointSharpness, store.part("a key")) == sharp.points[0]
    open_store(tmp_path / "new.db").close()
    assert layout(path) == layout(tmp_path / "new.db")


@each_version
def test_an_old_store_can_be_read_without_being_changed(
    path: Path, version: int, is_all_there: Callable[[Store], None]
) -> None:
    shutil.copy(old(version), path)
    with open_store(path, read_only=True) as store:
        is_all_there(store)
        assert (store.scalings() == ()) == (version < 7)
        assert (store.sharpnesses() == ()) == (version < 8)
        assert store.matches() == ()
        assert store.part("a key") is None
        for write in (
            lambda: store.add_note(STUDIES[version], "new"),
            lambda: store.save_profile(make_profile()),
            lambda: store.save_noise_run(make_noise_run()),
            lambda: store.save_advice(make_advice_data()),
            lambda: store.save_scaling(make_scaling_data()),
            lambda: store.save_sharpness(make_small_sharpness()),
            lambda: store.save_match(make_small_match()),
            lambda: store.save_part("a key", FINGERPRINT, "point", make_point()),
        ):
            with pytest.raises(StoreError, match="opened to be read only"):
                write()
    assert path.read_bytes() == old(version).read_bytes()


@each_version
def test_an_upgrade_that_breaks_off_leaves_the_old_version(
    path: Path, version: int, is_all_there: Callable[[Store], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(old(version), path)
    before = layout(path)
    broken = path.with_name("upgrade.sql")
    broken.write_text("CREATE TABLE half (x);\nINSERT INTO nowhere VALUES (1);\n")
    with monkeypatch.context() as patch:
        patch.setitem(opening.UPGRADES, opening.VERSION - 1, broken)  # the last one: those before it are undone too
        with pytest.raises(StoreError, match="nowhere"):
            open_store(path)
    assert layout(path) == before
    with open_store(path) as store:
        is_all_there(store)
