"""Does the SQLite store keep the contract, also when other processes use the file or are killed over it?"""

from __future__ import annotations

import dataclasses
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from batchscope.errors import StoreError
from batchscope.store import Owner, Store, open_store
from batchscope.testing.example_profiles import at, make_profile
from batchscope.testing.examples import bits, fill, make_result
from batchscope.testing.store_contract import StoreContract


class TestSqliteContract(StoreContract):
    def open(self, folder: Path) -> Store:
        return open_store(folder / "study.db")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study.db"


def fill_file(path: Path, trials: int = 3, finished: int = 1, evaluations: int = 3) -> list[int]:
    """A store file with one study; returns the ids of its trials."""
    with open_store(path) as store:
        return fill(store, trials, finished, evaluations)


def held(path: Path) -> list[Any]:
    """What the only study holds, bit for bit."""
    with open_store(path, read_only=True) as store:
        return [bits(record) for record in store.study_data(store.studies()[0].id).held]


# --- other processes ---

RUNNER = """
    import sys, time
    from batchscope.store import Owner, open_store
    from batchscope.testing.examples import make_result, make_settings
    path, what = sys.argv[1:]
    me = Owner.here()
    print("ready", flush=True)
    sys.stdin.readline()
    with open_store(path) as store:
        print("open", flush=True)
        study = store.save_study(make_settings())
        for seed, trial in enumerate(store.trial_ids(study, "held")):
            if store.lease(trial, me, 600).state == "leased":
                print(trial, flush=True)
                if what == "hold":
                    time.sleep(600)
                time.sleep(0.001)  # as if it trained
                store.finish(trial, me, make_result(seed, 50))
"""


def start(path: Path, what: str, script: str = RUNNER) -> subprocess.Popen[str]:
    """Another process that runs ("finish") or only leases ("hold") every trial it can get, or runs another script."""
    command = [sys.executable, "-c", textwrap.dedent(script), str(path), what]
    runner = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert runner.stdout is not None
    assert runner.stdout.readline() == "ready\n"
    return runner


def go(*runners: subprocess.Popen[str]) -> None:
    """Let processes loose together: their imports are done."""
    for runner in runners:
        assert runner.stdin is not None
        runner.stdin.write("go\n")
        runner.stdin.flush()


def test_two_processes_lease_each_trial_exactly_once(path: Path) -> None:
    ids = fill_file(path, trials=60, finished=0)
    runners = [start(path, "finish") for _ in range(2)]
    go(*runners)
    claimed = [[int(line) for line in runner.communicate(timeout=60)[0].split()[1:]] for runner in runners]
    assert sorted(claimed[0] + claimed[1]) == ids
    assert [runner.returncode for runner in runners] == [0, 0]
    assert all(claimed), "one process was done before the other began: nothing was contended"
    with open_store(path) as store:
        assert all([a.how for a in store.attempts(trial)] == ["finished"] for trial in ids)


def test_processes_may_create_the_store_together(path: Path) -> None:
    runners = [start(path, "finish") for _ in range(4)]
    go(*runners)
    assert [runner.communicate(timeout=60)[0] for runner in runners] == ["open\n"] * 4
    with open_store(path) as store:
        assert len(store.studies()) == 1


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="a zombie is recognised through /proc")
def test_a_lease_of_a_killed_process_can_be_taken_at_once(path: Path) -> None:
    (trial,) = fill_file(path, trials=1, finished=0)
    with start(path, "hold") as runner, open_store(path) as store:
        go(runner)
        assert runner.stdout is not None
        assert [runner.stdout.readline() for _ in range(2)] == ["open\n", f"{trial}\n"]
        assert store.lease(trial, Owner.here(), 60).state == "busy"
        runner.send_signal(signal.SIGKILL)
        time.sleep(0.1)  # dead, and not yet waited for: a zombie
        assert store.lease(trial, Owner.here(), 60).attempt == 2
        first, _ = store.attempts(trial)
        assert (first.how, first.reason) == ("interrupted", f"{first.owner} is gone")


def test_a_killed_process_leaves_whole_trials_only(path: Path) -> None:
    """Kill -9 at random moments of a process that does nothing but store: every trial is there whole or not at all."""
    ids = fill_file(path, trials=60, finished=0)
    expected = [bits(make_result(seed, 50)) for seed in range(60)]
    moments = random.Random(0)
    for _ in range(3):
        with start(path, "finish") as runner:
            go(runner)
            time.sleep(moments.uniform(0.0, 0.08))
            runner.kill()
        with open_store(path) as store:
            done = ["finished" in [a.how for a in store.attempts(trial)] for trial in ids]
            records = [store.trial(trial) for trial in ids]
        assert done == [record is not None for record in records]
        assert all(bits(r.result) == expected[r.spec.seed] for r in records if r is not None)
    with start(path, "finish") as runner:
        go(runner)
        runner.communicate(timeout=60)
    assert [record["result"] for record in held(path)] == expected


PROFILER = """
    import sys
    from batchscope.store import open_store
    from batchscope.testing.example_profiles import at, make_profile
    print("ready", flush=True)
    sys.stdin.readline()
    with open_store(sys.argv[1]) as store:
        for seed in range(int(sys.argv[2]), 10**6):
            store.save_profile(make_profile(seed=seed, measured_at=at(seed % 24)))
            print(seed, flush=True)
"""


def test_a_killed_process_leaves_whole_profiles_only(path: Path) -> None:
    """Kill -9 of a process that does nothing but store profiles: each is whole, none that was stored is missing."""
    moments = random.Random(1)
    for first in (0, 100_000):
        with start(path, str(first), PROFILER) as profiler:
            go(profiler)
            assert profiler.stdout is not None
            assert profiler.stdout.readline() == f"{first}\n"
            time.sleep(moments.uniform(0.0, 0.05))
            profiler.kill()
            said = [
                first,
                *(int(line) for line in profiler.stdout.read().splitlines(keepends=True) if line[-1] == "\n"),
            ]
        with open_store(path) as store:
            stored = {profile.seed: profile for _, profile in store.profiles()}
        assert set(said) <= set(stored)
        assert sum(seed >= first for seed in stored) <= len(said) + 1  # stored, and killed before it said so
        assert all(bits(p) == bits(make_profile(seed=seed, measured_at=at(seed % 24))) for seed, p in stored.items())


def test_an_owner_is_gone_only_where_that_can_be_known() -> None:
    me = Owner.here()
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert not me.is_gone()
    assert dataclasses.replace(me, pid=child.pid).is_gone()
    assert not dataclasses.replace(me, pid=child.pid, host="elsewhere").is_gone()
    assert not dataclasses.replace(me, started="").is_gone()
    assert dataclasses.replace(me, started="before the boot").is_gone() == bool(me.started)
    with pytest.raises(ValueError, match="above 0"):
        dataclasses.replace(me, pid=0)


def test_an_interrupt_inside_a_transaction_leaves_nothing_of_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, trial, _ = fill_file(path)
    before = held(path)
    with open_store(path) as store:
        store.lease(trial, Owner.here(), 60)
        with monkeypatch.context() as patch:
            patch.setattr("batchscope.store.sqlite._end_attempt", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                store.finish(trial, Owner.here(), make_result())
        assert store.trial(trial) is None
        assert held(path) == before
        store.finish(trial, Owner.here(), make_result())
        assert store.trial(trial) is not None


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_another_thread_is_told_to_open_its_own(path: Path) -> None:
    said: list[str] = []
    with open_store(path) as store:

        def use() -> None:
            with pytest.raises(StoreError) as error:
                store.studies()
            said.append(str(error.value))

        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    assert "thread" in said[0]


def test_two_processes_store_the_same_profile_once_and_others_beside_it(path: Path) -> None:
    one = textwrap.dedent(PROFILER).replace("10**6", "20")
    profilers = [start(path, "0", one) for _ in range(2)]
    go(*profilers)
    assert [p.communicate(timeout=60)[0].split() for p in profilers] == [[str(seed) for seed in range(20)]] * 2
    with open_store(path) as store:
        assert sorted(profile.seed for _, profile in store.profiles()) == list(range(20))


# --- readers ---


def test_curves_can_be_read_with_sql(path: Path) -> None:
    ids = fill_file(path)
    with sqlite3.connect(path) as db:
        rows = db.execute(
            "SELECT trial_id, batch_size, seed, step, validation_loss, update_norm FROM curves"
        ).fetchall()
    db.close()
    assert rows == [
        (ids[0], 32, 0, 0, 1.1, None),
        (ids[0], 32, 0, 16, 0.55, 0.1),
        (ids[0], 32, 0, 32, 1.1 / 3, 0.05),
    ]


def test_the_store_needs_no_torch_and_the_contract_package_no_pytest() -> None:
    script = "import sys, batchscope.store, batchscope.testing; print({'torch', 'numpy', 'pytest'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
