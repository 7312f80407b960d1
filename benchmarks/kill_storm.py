"""Do the stored records stay the same, bit for bit, when the command or a worker is killed at a random moment?

A small study is run undisturbed once: its records are the truth, its duration T the range of the moments. Then, for
every kill, a fresh store: the real command is started with a checkpoint at every evaluation, killed with SIGKILL
at a moment drawn uniformly from 0 to T, and run again to its end; or one random worker of it is killed, which the
command must survive. All that was stored must equal the truth: every trial's specification, conditions and result
(traces, outcomes, steps), the chosen learning rates, the reference run and the settings; clock readings, attempts and
the timing pass apart.

How many threads a worker gets is measured when a study begins, and on a busy machine may come out otherwise: such a
run is of another study and is not compared. A run that was over before the moment came was not killed. Either is made
again, at another moment; the table counts them.

Targets (`--check` exits 1 where one is missed): no kill changes anything, and as many kills as asked for were made.

    python benchmarks/kill_storm.py [--command 20] [--worker 20] [--seed 0] [--task digits] [--out FILE] [--check]

With --out, kills that the file holds for this source code and these options are not made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import batchscope
from batchscope.store.sqlite import open_store
from batchscope.testing.examples import bits
from environment import environment

COMMAND = Path(sys.executable).with_name("batchscope")
ROLES = ("reference", "held", "tuning", "tuned")
REPEATS = 8  # of a kill that came too late, or whose run chose other threads than the truth
POLL_SECONDS = 0.005


@dataclasses.dataclass(frozen=True)
class Storm:
    """What is run, and where its store lies."""

    task: str
    batch_sizes: str
    patience: float

    def start(self, store: Path) -> subprocess.Popen[bytes]:
        """The command, with its output thrown away but for errors."""
        sizes, patience = ("--batch-sizes", self.batch_sizes), ("--patience", str(self.patience))
        asked = (*sizes, *patience, "--seeds", "1", "--checkpoint-seconds", "0")
        return subprocess.Popen(
            [str(COMMAND), "study", self.task, *asked, "--store", str(store), "--no-report", "--json"],
            stdout=subprocess.DEVNULL,
            stderr=(store.parent / "stderr").open("ab"),
        )

    def finish(self, store: Path) -> None:
        """Run the command to its end."""
        if self.start(store).wait() != 0:
            raise SystemExit(f"the command failed:\n{(store.parent / 'stderr').read_text()}")


def records(store: Path) -> dict[str, Any]:
    """Every bit that was stored, clock readings, attempts and the timing pass apart."""
    with open_store(store, read_only=True) as opened:
        (summary,) = opened.studies()
        data = opened.study_data(summary.id)

    def still(trials: Any) -> list[Any]:
        return [dataclasses.replace(t, attempts=0, result=dataclasses.replace(t.result, seconds=0.0)) for t in trials]

    found = {role: still(getattr(data, role)) for role in ROLES}
    found |= {name: getattr(data, name) for name in ("settings", "choices", "notes")}
    return bits(found | {"reference run": [data.reference_examples, data.reference_reached]})


def count(store: Path, condition: str) -> int:
    """Attempts that fulfil a condition; 0 before there is a store."""
    if not store.exists():
        return 0
    try:
        with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as db:
            (found,) = db.execute(f"SELECT count(*) FROM attempts WHERE {condition}").fetchone()
        db.close()
    except sqlite3.OperationalError:  # killed before its tables were laid out
        return 0
    return found


def workers_of(parent: int) -> list[int]:
    """Its worker processes, from /proc."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            of = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if of == parent and b"batchscope.sweep.worker" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return sorted(found)


def kill(storm: Storm, store: Path, kind: str, moment: float, draw: random.Random) -> dict[str, Any]:
    """Start, kill at the moment, run to the end; says what was hit. A worker is waited for where there is none yet."""
    command, started, hit = storm.start(store), time.monotonic(), 0
    while command.poll() is None and time.monotonic() - started < moment:
        time.sleep(POLL_SECONDS)
    if kind == "command":
        command.kill()
        command.wait()
        hit = count(store, "ended_at IS NULL")
        made = command.returncode == -signal.SIGKILL
        storm.finish(store)
    else:
        while not (workers := workers_of(command.pid)) and command.poll() is None:
            time.sleep(POLL_SECONDS)
        if workers:
            os.kill(draw.choice(workers), signal.SIGKILL)
        made = bool(workers)
        if command.wait() != 0:
            raise SystemExit(f"the command did not survive its worker:\n{(store.parent / 'stderr').read_text()}")
        hit = count(store, "how = 'died'")
    return {"killed": made, "trials_hit": hit}


def source() -> str:
    """Hash of the package: what the kills in a file say something about."""
    digest = hashlib.sha256()
    for path in sorted(Path(batchscope.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def one(storm: Storm, kind: str, number: int, seed: int, truth: tuple[float, dict[str, Any]]) -> dict[str, Any]:
    """One kill, compared with the truth."""
    draw = random.Random(f"{seed} {kind} {number}")
    late = others = 0
    while late + others < REPEATS:
        moment = draw.uniform(0, truth[0])
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder) / "a.db"
            what = kill(storm, store, kind, moment, draw)
            found = records(store)
            left = [path.name for path in Path(folder).iterdir() if "checkpoints" in path.name]
        ours, theirs = found["settings"], truth[1]["settings"]
        if (ours["conditions"], ours["workers"]) != (theirs["conditions"], theirs["workers"]):
            others += 1
        elif not what["killed"]:
            late += 1
        else:
            return {
                "kind": kind,
                "number": number,
                "second": round(moment, 3),
                "trials_hit": what["trials_hit"],
                "differs": sorted(part for part in found if found[part] != truth[1][part]),
                "checkpoints_left": left,
                "came_too_late": late,
                "other_threads": others,
            }
    raise SystemExit(f"{REPEATS} runs were over too soon or chose other threads: run this on a quieter machine")


def undisturbed(storm: Storm) -> tuple[float, dict[str, Any]]:
    """Seconds and records of a run that nobody disturbs."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        storm.finish(Path(folder) / "a.db")
        return time.monotonic() - started, records(Path(folder) / "a.db")


def show(kills: list[dict[str, Any]], seconds: float, trials: int) -> None:
    """The table."""
    print(f"{trials} trials, {seconds:.1f} s undisturbed\n")
    print("killed    kills   hit a running trial   trials hit   equal   came too late   chose other threads")
    for kind in ("command", "worker"):
        mine = [k for k in kills if k["kind"] == kind]
        hit, trials_hit = sum(k["trials_hit"] > 0 for k in mine), sum(k["trials_hit"] for k in mine)
        equal, late = sum(not k["differs"] for k in mine), sum(k["came_too_late"] for k in mine)
        others = sum(k["other_threads"] for k in mine)
        print(f"{kind:8}{len(mine):7}{hit:22}{trials_hit:13}{equal:8}{late:16}{others:22}")


def main() -> None:
    """Make the kills that are still to be made; exit 1 with --check where one changed anything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--command", type=int, default=20, help="kills of the command")
    parser.add_argument("--worker", type=int, default=20, help="kills of a worker")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--task", default="digits")
    parser.add_argument("--batch-sizes", default="64,256")
    parser.add_argument("--patience", type=float, default=2.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    storm = Storm(asked.task, asked.batch_sizes, asked.patience)
    about = {"source": source(), "seed": asked.seed, **dataclasses.asdict(storm)}
    before = json.loads(asked.out.read_text()) if asked.out and asked.out.exists() else {}
    kills = before["kills"] if before.get("about") == about else []
    wanted = [("command", n) for n in range(asked.command)] + [("worker", n) for n in range(asked.worker)]
    left = [w for w in wanted if w not in {(k["kind"], k["number"]) for k in kills}]
    seconds, trials = before.get("seconds", 0.0), before.get("trials", 0)
    where = environment()
    print("  ".join(f"{k}: {v}" for k, v in where.items()))
    if left:
        truth = undisturbed(storm)
        seconds, trials = truth[0], sum(len(truth[1][role]) for role in ROLES)
    for kind, number in left:
        kills.append(one(storm, kind, number, asked.seed, truth))
        print(json.dumps(kills[-1]), flush=True)
        if asked.out:
            result = {"environment": where, "about": about, "seconds": seconds, "trials": trials, "kills": kills}
            asked.out.write_text(json.dumps(result, indent=1) + "\n")
    mine = [k for k in kills if (k["kind"], k["number"]) in wanted]
    show(mine, seconds, trials)
    wrong = [k for k in mine if k["differs"] or k["checkpoints_left"]]
    print(f"{len(mine) - len(wrong)} of {len(wanted)} kills changed nothing and left nothing behind")
    sys.exit(1 if asked.check and wrong else 0)


if __name__ == "__main__":
    main()
