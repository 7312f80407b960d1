"""Do commands that run at once on one store share the work, and leave each other alone to measure?"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from batchscope.store.owner import Owner
from batchscope.store.sqlite import open_store
from batchscope.task import Task
from batchscope.testing.examples import make_spec
from batchscope.training.device import pick_device, set_up

from .conftest import SMALL, Ask
from .studies import ROLES, Heard, hearing, kinds

COMMANDS = """
import json, multiprocessing, os, sys
from pathlib import Path
import batchscope as bs
from batchscope.analysis.table import to_json
from batchscope.sweep.jobs import warm_up

def command(task, store, seed, answer, core):
    os.sched_setaffinity(0, {core})  # one worker each
    started = []
    result = bs.study(task, batch_sizes=(16, 64), policy="held", seeds=2, seed=int(seed), store=store, draw=False,
                      listen=lambda kind, details: started.append(details["trial"]) if kind == "started" else None)
    Path(answer).write_text(json.dumps([to_json(result), len(started)]))

warm_up()
task, store, *seeds = sys.argv[1:]
fork = multiprocessing.get_context("fork")  # what all import is imported once, and none has a head start
cores = sorted(os.sched_getaffinity(0))
asked = [(task, store, seed, f"{store}.{n}", cores[n % len(cores)]) for n, seed in enumerate(seeds)]
commands = [fork.Process(target=command, args=each) for each in asked]
for begin in commands:
    begin.start()
for end in commands:
    end.join()
print([command.exitcode for command in commands])
"""


def test_commands_that_run_at_once_share_the_work_and_agree(path: Path) -> None:
    """Two of the same study and one of another, on one store: each trial is run exactly once, by somebody."""
    command = [sys.executable, "-c", COMMANDS, f"{SMALL}:task", str(path), "0", "0", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.stdout.strip() == "[0, 0, 0]", ended.stderr
    answers = [json.loads(path.with_name(f"a.db.{number}").read_text()) for number in range(3)]
    (one, by_one), (two, by_two), (other, by_other) = answers
    assert one == two
    assert [row["seeds"] for row in other["rows"]] == [2, 2]
    with open_store(path, read_only=True) as store:
        studies = store.studies()
        assert len(studies) == 2
        assert all(s.finished_trials == s.trials == 5 for s in studies)
        ids = {i for s in studies for role in ROLES for i in store.trial_ids(s.id, role)}
        assert [len(store.attempts(i)) for i in ids] == [1] * 10
        assert {store.study(s.id).conditions.threads for s in studies} == {one["settings"]["conditions"]["threads"]}
    assert by_one + by_two == by_other == 5


def test_steps_are_timed_while_nobody_else_on_this_store_trains(
    small: Task, ask: Ask, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another command has a trial under way when ours are done: the timing waits for its end, and holds off others."""
    other, third = Owner.here("other"), Owner.here("third")
    heard: Heard = []
    with open_store(path) as store:
        theirs, next_one = store.add_trials(
            None, "held", "0" * 16, set_up(1, pick_device(), small.precision), [make_spec(0), make_spec(1)]
        )
        assert store.lease(theirs, other, 60).state == "leased"
        waits: list[str] = []

        def sleep(_: float) -> None:
            waits.append(store.lease(next_one, other, 60).state)  # while we wait, nobody begins another one
            waits.append(store.claim_machine(third, 60))
            assert kinds(heard, "phase")[-1]["roles"] != {"timing": 2}
            if len(waits) == 6:
                store.release(theirs, other, "interrupted")

        monkeypatch.setattr(time, "sleep", sleep)
        result = ask(small, policy="held", listen=hearing(heard))
        assert waits == ["busy"] * 6
        assert store.claim_machine(third, 60) == "alone"  # and it was given back
    assert result.timing is not None
    assert "waiting for another command on this store, so as to measure alone" in [
        n["text"] for n in kinds(heard, "note")
    ]
