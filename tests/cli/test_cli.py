"""Does every command say one thing on stdout, one sentence on stderr, and leave with the right code?"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import math
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest
import typer
from rich.console import Console

from batchscope.cli import interrupt
from batchscope.cli.progress import Progress
from batchscope.records import StudyData
from batchscope.store.sqlite import open_store
from batchscope.testing.examples import bits, make_result, make_spec

from .conftest import ASKED, COMMAND, SMALL, Ended, Here, Study, really, task_file

PROC = Path("/proc")
COMMANDS = ("study", "report", "list", "show", "export")
KEYS = {
    "rows",
    "claims",
    "critical_batch_size",
    "s_min",
    "report",
}
ROW_KEYS = {
    "batch_size",
    "policy",
    "learning_rate",
    "tuning_trials",
    "seeds",
    "reached",
    "epochs_to_converge",
    "steps_to_goal",
    "examples_to_goal",
    "seconds_per_epoch",
    "seconds_to_converge",
    "seconds_to_goal",
    "min_validation_loss",
    "train_loss",
    "generalization_gap",
    "distance_from_init",
}
CLAIM_KEYS = {"claim", "policy", "verdict", "effect"}
MEASURED_KEYS = {"estimate", "low", "high", "n", "censored", "interval"}


def sentence(ended: Ended, code: int, *parts: str) -> None:
    """The command ended with this code, nothing on stdout, and one sentence that says all of this."""
    assert (ended.code, ended.out) == (code, "")
    said = [line for line in ended.err.splitlines() if line.startswith("batchscope: ")]
    assert len(said) == 1, ended.err
    assert "Traceback" not in ended.err
    for part in parts:
        assert part in said[0], said[0]


def data_of(store: Path) -> StudyData:
    with open_store(store, read_only=True) as opened:
        return opened.study_data(opened.studies()[0].id)


# --- help ---


def test_help_needs_no_torch_and_every_command_has_one(here: Here) -> None:
    script = "import batchscope.cli.app, sys; assert not {'torch', 'scipy', 'altair'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
    for arguments in ([], ["--help"], *([name, "--help"] for name in COMMANDS)):
        ended = here(*arguments)
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.startswith("Usage: batchscope")
    assert all(name in here("--help").out for name in COMMANDS)


# --- a study's answer ---


def test_json_is_one_object_with_the_keys_of_the_contract(study: Study) -> None:
    """And nothing else on stdout, though the task prints."""
    answer = study.answer
    assert answer.keys() >= KEYS
    assert [(r["policy"], r["batch_size"]) for r in answer["rows"]] == [
        ("held", 16),
        ("held", 64),
        ("tuned", 16),
        ("tuned", 64),
    ]
    for row in answer["rows"]:
        assert row.keys() >= ROW_KEYS
        for key in ROW_KEYS - {"batch_size", "policy", "learning_rate", "tuning_trials", "seeds", "reached"}:
            assert row[key].keys() == MEASURED_KEYS
    for claim in answer["claims"]:
        assert claim.keys() >= CLAIM_KEYS
        assert claim["verdict"] in ("holds", "does not hold", "not resolved")
    assert {(c["number"], c["policy"]) for c in answer["claims"]} == {
        *((n, p) for n in range(1, 7) for p in ("held", "tuned")),
        (7, "both"),
    }
    assert answer["s_min"] is None or answer["s_min"].keys() == MEASURED_KEYS
    assert Path(answer["report"]).read_text().startswith("<!doctype html>")
    assert "NaN" not in study.ended.out
    assert "Infinity" not in study.ended.out


def test_progress_is_on_stderr_a_line_a_trial(study: Study) -> None:
    lines = study.ended.err.splitlines()
    assert sum(bool(re.match(r"  \d+/\d+ B=\d+ lr=", line)) for line in lines) == study.answer["spent"]["trials"]
    assert "timing (2) ..." in lines
    assert "loading" in lines
    assert "from a program" in lines
    assert "Traceback" not in study.ended.err


def test_the_same_command_again_prints_the_same_for_nothing(study: Study) -> None:
    started = time.monotonic()
    again = really("study", study.task, *ASKED, "--store", "a.db", "--json", cwd=study.store.parent)
    assert (again.code, again.out) == (0, study.ended.out)
    assert "B=" not in again.err
    assert time.monotonic() - started < 60


def test_without_json_the_tables_are_printed(study: Study, here: Here) -> None:
    ended = here("show", study_id(study), "--store", str(study.store))
    assert ended.code == 0
    assert ended.err == ""
    assert "small: what batch size does, goal validation loss" in ended.out
    assert "tuned" in ended.out
    assert f"Spent: {study.answer['spent']['trials']} trials" in ended.out


def study_id(study: Study) -> str:
    with open_store(study.store, read_only=True) as store:
        return store.studies()[0].id


def test_list_show_export_and_report(study: Study, here: Here, tmp_path: Path) -> None:
    where = ("--store", str(study.store))
    listed = json.loads(here("list", *where, "--json").out)["studies"]
    assert [s["task"] for s in listed] == ["small"]
    assert listed[0]["trials"] == listed[0]["finished_trials"] == study.answer["spent"]["trials"]
    assert "finished" in here("list", *where).out
    short = listed[0]["id"][:5]
    shown = json.loads(here("show", short, *where, "--json").out)
    assert {k: v for k, v in shown.items() if k not in ("report", "notes")} == {
        k: v for k, v in study.answer.items() if k not in ("report", "notes")
    }
    page = tmp_path / "page.html"
    assert here("report", short, *where, "--report", str(page)).out == f"{page}\n"
    assert json.loads(here("report", short, *where, "--report", str(page), "--json").out) == {"report": str(page)}
    rows = list(csv.DictReader(io.StringIO(here("export", short, *where).out)))
    data = data_of(study.store)
    trials = [t for role in ("reference", "held", "tuning", "tuned") for t in getattr(data, role)]
    assert len(rows) == sum(6 * len(t.result.trace) for t in trials)  # two metrics twice, distance, update norm
    held = [r for r in rows if (r["role"], r["part"], r["metric"]) == ("held", "validation", "loss")]
    assert [float(r["value"]) for r in held] == [e.validation["loss"] for t in data.held for e in t.result.trace]
    records = json.loads(here("export", short, *where, "--json").out)
    assert len(records["tuned"]) == len(data.tuned)
    assert records["held"][0]["result"]["trace"][0]["update_norm"] is None


def test_dry_run_says_what_would_run_and_runs_nothing(here: Here, tmp_path: Path) -> None:
    ended = here("study", str(SMALL), *ASKED, "--dry-run")
    assert ended.code == 0
    assert "batch sizes 16, 64; 1 seeds; held and tuned" in ended.out
    plan = json.loads(here("study", str(SMALL), *ASKED, "--dry-run", "--json").out)
    assert plan["trials"] == {"held": 2, "tuning": 10, "tuned": 2}
    assert {"examples", "reference_runs", "seconds", "bytes"} == plan["at_most"].keys()
    assert not (tmp_path / "batchscope.db").exists()


def test_a_study_with_nothing_measured_yet_can_be_shown(here: Here, study: Study, tmp_path: Path) -> None:
    with open_store(tmp_path / "new.db") as store:
        new = store.save_study(data_of(study.store).settings)
    assert json.loads(here("show", new, "--store", "new.db", "--json").out)["rows"][0]["seeds"] == 0
    assert here("report", new, "--store", "new.db").code == 0
    assert "unfinished" in here("list", "--store", "new.db").out


def test_an_empty_store_lists_nothing(here: Here, tmp_path: Path) -> None:
    open_store(tmp_path / "batchscope.db").close()
    assert here("list").out == "no studies yet\n"
    assert json.loads(here("list", "--json").out) == {"studies": []}


def test_a_name_that_the_terminal_cannot_show_is_shown_escaped(study: Study, tmp_path: Path) -> None:
    settings = data_of(study.store).settings
    with open_store(tmp_path / "a.db") as store:
        store.save_study(dataclasses.replace(settings, task="sn\N{SNOWMAN}w"))
    ended = subprocess.run(
        [COMMAND, "list", "--store", "a.db"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "sn\\u2603w" in ended.stdout


def test_a_reader_that_goes_away_is_no_error(study: Study) -> None:
    with subprocess.Popen(
        [COMMAND, "export", study_id(study), "--store", str(study.store)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as command:
        assert command.stdout is not None
        assert command.stderr is not None
        command.stdout.read(10)
        command.stdout.close()
        assert command.stderr.read() == b""
        assert command.wait(30) == 0


# --- bad usage ---


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["dance"], ["dance"]),
        (["study"], ["argument"]),
        (["study", "digits", "--dance"], ["No such option", "--dance"]),
        (["list", "--dance"], ["No such option", "--dance"]),
        (["study", "digits", "--seeds", "many"], ["--seeds"]),
        (["study", "nope"], ["no task named 'nope'", "digits", "package.module:function"]),
        (["study", "missing.py"], ["no file at missing.py"]),
        (["study", "no.such.module:task"], ["no module named 'no.such.module'", "check the name"]),
        (["study", "{small}:dance"], ["has no function 'dance'", "odd, task"]),
        (["study", "{small}", "--policy", "best"], ["expected policy", "'best'"]),
        (["study", "{small}", "--batch-sizes", "0"], ["0", "remove it"]),
        (["study", "{small}", "--batch-sizes=-3"], ["-3", "remove it"]),
        (["study", "{small}", "--batch-sizes", "16,16"], ["each batch size once", "16 2 times"]),
        (["study", "{small}", "--batch-sizes", "16,257"], ["256 training examples", "257"]),
        (["study", "{small}", "--batch-sizes", "16,many"], ["whole numbers", "'16,many'", "--batch-sizes 32,256"]),
        (["study", "{small}", "--batch-sizes", "16,,64"], ["whole numbers", "'16,,64'"]),
        (["study", "{small}", "--batch-sizes", "16.5"], ["whole numbers", "'16.5'"]),
        (["study", "{small}", "--batch-sizes", ""], ["whole numbers", "''"]),
        (["study", "{small}", "--seeds", "0"], ["at least one seed", "0"]),
        (["study", "{small}", "--patience", "0"], ["patience in epochs above 0"]),
        (["study", "{small}", "--budget", "-1"], ["budget in reference runs above 0", "-1"]),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_bad_usage_is_one_sentence_and_code_2(
    here: Here, tmp_path: Path, arguments: list[str], parts: list[str]
) -> None:
    sentence(here(*(a.format(small=SMALL) for a in arguments)), 2, *parts)
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback_and_keeps_sentence_and_code(here: Here) -> None:
    ended = here("study", "nope", "--debug")
    assert (ended.code, ended.out) == (2, "")
    assert "Traceback (most recent call last)" in ended.err
    assert ended.err.splitlines()[-1].startswith("batchscope: no task named 'nope'")


def test_an_error_that_nobody_foresaw_is_a_sentence_too(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr("batchscope.verbs.study.study", broken)
    ended = here("study", "digits")
    sentence(ended, 1, "unexpected RuntimeError: first line second line", "--debug")


# --- bad tasks ---

BAD_TASKS = {
    "raising file": ("raise ValueError('no data here')", ["ValueError: no data here", "mine.py, line 4"]),
    "syntax error": ("def task(:", ["SyntaxError", "line 4"]),
    "missing import": ("import no_such_library", ["no_such_library"]),
    "exit": ("sys.exit(3)", ["SystemExit: 3"]),
    "raising function": ("def task():\n    return {}['data']", ["KeyError: 'data'", "mine.py, line 5"]),
    "no task": ("def task():\n    return 3", ["expected its function to return a bs.Task, got int"]),
    "goal met": ("goal=bs.Goal('loss', at_most=100)", ["which initialisation already meets", "set a harder one"]),
    "nan loss": ("loss=lambda o, t: torch.nn.functional.cross_entropy(o, t) * float('nan')", ["finite loss", "nan"]),
    "nan after a step": ("lr=1e38", ["finite loss", "own point (lr=1e+38, batch_size=16)"]),
    "empty data": ("train=(torch.zeros(0, 8), torch.zeros(0).long())", ["at least 2 examples, got 0"]),
    "one example": ("train=(torch.zeros(1, 8), torch.zeros(1).long())", ["at least 2 examples, got 1"]),
    "empty validation": ("valid=(torch.zeros(0, 8), torch.zeros(0).long())", ["at least 1 example, got 0"]),
    "iterable": (
        "train=type('Stream', (torch.utils.data.IterableDataset,), {'__iter__': lambda self: iter([])})()",
        ["iterable", "Stream", "map-style"],
    ),
    "mismatch": (
        "model=lambda: torch.nn.Linear(8, 2)",
        ["output of shape (8, 2)", "target", "make the model's output match the targets"],
    ),
    "wrong input": ("model=lambda: torch.nn.Linear(5, 3)", ["it raised RuntimeError", "make the model's output match"]),
    "sum": (
        "loss=lambda o, t: torch.nn.functional.cross_entropy(o, t, reduction='sum')",
        ["mean over the batch", "reduction='mean'"],
    ),
    "no scalar": (
        "loss=lambda o, t: torch.nn.functional.cross_entropy(o, t, reduction='none')",
        ["scalar", "shape (8,)"],
    ),
    "closure": ("optimizer=lambda m, lr: torch.optim.LBFGS(m.parameters(), lr=lr)", ["LBFGS", "not supported"]),
    "batch too large": ("batch_size=300", ["256 training examples", "300"]),
}


@pytest.mark.parametrize("name", BAD_TASKS)
def test_a_bad_task_is_one_sentence_and_code_1(here: Here, tmp_path: Path, name: str) -> None:
    text, parts = BAD_TASKS[name]
    if "=" in text.split("\n")[0] and not text.startswith("def"):
        text = f"def task():\n    return dataclasses.replace(small_task.task(), {text})"
    sentence(here("study", task_file(tmp_path, text), *ASKED), 1, *parts)
    assert not (tmp_path / "batchscope.db").exists()


def test_batch_norm_at_batch_size_one_is_refused_with_the_reason(here: Here, tmp_path: Path) -> None:
    model = "model=lambda: torch.nn.Sequential(torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3))"
    file = task_file(tmp_path, f"def task():\n    return dataclasses.replace(small_task.task(), {model})")
    sentence(here("study", file, "--batch-sizes", "1,16"), 1, "batch size of 1", "batch norm", "leave it out")
    sentence(
        here("study", file, "--batch-sizes", "16,51"), 1, "batch size 51", "its last batch of an epoch is 1 of 256"
    )


# --- bad stores ---


def test_a_store_that_is_not_ours_is_left_alone(here: Here, tmp_path: Path) -> None:
    foreign = tmp_path / "notes.txt"
    foreign.write_text("somebody's notes\n" * 100)
    for arguments in (["study", str(SMALL), *ASKED], ["list"], ["show", "a"], ["export", "a"], ["report", "a"]):
        sentence(here(*arguments, "--store", str(foreign)), 1, "notes.txt is not a Batchscope store", "--store")
    assert foreign.read_text() == "somebody's notes\n" * 100


def test_a_store_of_a_newer_version_is_left_alone(here: Here, study: Study, tmp_path: Path) -> None:
    newer = Path(shutil.copy(study.store, tmp_path / "newer.db"))
    with sqlite3.connect(newer) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    content = newer.read_bytes()
    sentence(here("study", str(SMALL), *ASKED, "--store", "newer.db"), 1, "version 99", "upgrade Batchscope")
    assert newer.read_bytes() == content


@pytest.mark.parametrize(
    ("store", "parts"),
    [
        (".", ["is a folder", "batchscope.db"]),
        ("no/such/folder/a.db", ["the folder no/such/folder does not exist", "create it"]),
        ("missing.db", ["there is no store at missing.db", "run a study first"]),
    ],
)
def test_a_store_that_is_not_there(here: Here, store: str, parts: list[str]) -> None:
    command = ["list"] if "missing" in store else ["study", str(SMALL), *ASKED]
    sentence(here(*command, "--store", store), 1, *parts)


def test_an_unknown_study_is_one_sentence(here: Here, study: Study) -> None:
    for command in ("show", "export", "report"):
        sentence(here(command, "zzz", "--store", str(study.store)), 1, "no study", "'zzz'", "batchscope list")


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Path]:
    """A disk of its own, of 600 kB; `mount -o remount` changes it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or mount("-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)) != 0:
        pytest.skip("needs the right to mount a small file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def mount(*arguments: str) -> int:
    return subprocess.run(["mount", *arguments], capture_output=True).returncode


def test_a_full_disk_and_a_read_only_one_lose_nothing(here: Here, small_disk: Path) -> None:
    """Full in the middle of a study; read-only after that; then room again, and the study goes on where it stopped."""
    ask = ("study", str(SMALL), "--batch-sizes", "8,16,64", "--policy", "held", "--seeds", "4", "--no-report")
    store = small_disk / "a.db"
    ended = here(*ask, "--store", str(store))
    sentence(ended, 1, "full", "free")
    mount("-o", "remount,ro", str(small_disk))
    sentence(here(*ask, "--store", str(store)), 1, "read-only")
    mount("-o", "remount,rw,size=20m", str(small_disk))
    kept = data_of(store).held
    assert 0 < len(kept) < 12
    again = here(*ask, "--store", str(store), "--json")
    assert again.code == 0
    assert [row["seeds"] for row in json.loads(again.out)["rows"]] == [4, 4, 4]
    now = {record.spec: record for record in data_of(store).held}
    assert bits([now[record.spec] for record in kept]) == bits(kept)
    assert len(re.findall(r"  \d+/12 B=", again.err)) == 12 - len(kept)


# --- Ctrl-C ---


def children_of(pid: int) -> list[int]:
    found = []
    for entry in PROC.glob("[0-9]*"):
        try:
            of = (entry / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if int(of) == pid:
            found.append(int(entry.name))
    return found


def is_alive(pid: int) -> bool:
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def interrupted(folder: Path, after: str | float) -> tuple[Ended, list[int]]:
    """Start the command, press Ctrl-C after so many seconds or this line; how it ended, and its workers then."""
    heeds = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's "&" has children ignore it
    try:
        command = subprocess.Popen(
            [COMMAND, "study", str(SMALL), *ASKED, "--store", "a.db", "--json", "--checkpoint-seconds", "0"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, heeds)
    assert command.stderr is not None
    said = ""
    if isinstance(after, float):
        time.sleep(after)
    else:
        while after not in said:
            line = command.stderr.readline()
            assert line, f"{after!r} was not said: {said}"
            said += line
    workers = children_of(command.pid)
    command.send_signal(signal.SIGINT)
    out, err = command.communicate(timeout=30)
    return Ended(command.returncode, out, said + err), workers


def test_ctrl_c_at_any_time_is_a_sentence_leaves_nobody_and_loses_nothing(study: Study, tmp_path: Path) -> None:
    """While torch is imported, trials run, steps are timed: one store through all."""
    for after in (0.6, "/4 B=16", "timing"):
        ended, workers = interrupted(tmp_path, after)
        assert ended.code == 1, (after, ended)
        sentence(ended, 1, "stopped")
        assert not any(map(is_alive, workers)), after
        assert workers or after == 0.6
    ended = really("study", str(SMALL), *ASKED, "--store", "a.db", "--json", cwd=tmp_path)
    assert ended.code == 0
    assert still(json.loads(ended.out)) == still(study.answer)
    assert not (tmp_path / "a.db.checkpoints").exists()


def test_ctrl_c_that_was_swallowed_by_an_import_stops_at_the_next_event(
    here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def handle_then_swallow(*_: object, **__: object) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            interrupt._handle(signal.SIGINT, None)

    monkeypatch.setattr(interrupt, "_seen", False)
    monkeypatch.setattr("batchscope.verbs.study._remember", lambda *_: handle_then_swallow() or [])
    sentence(here("study", str(SMALL), *ASKED), 1, "stopped; everything measured so far is stored")


def test_ctrl_c_while_the_command_line_is_read(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(typer.core.TyperGroup, "parse_args", press)
    sentence(here("list"), 1, "stopped")


def still(answer: dict) -> list[list[object]]:
    """What of an answer depends on no clock."""
    keys = ROW_KEYS - {"seconds_per_epoch", "seconds_to_converge", "seconds_to_goal"}
    return [[row[key] for key in sorted(keys)] for row in answer["rows"]]


# --- progress ---


def events() -> list[tuple[str, dict]]:
    spec, result = make_spec(), make_result()
    return [
        ("phase", {"roles": {"held": 3, "tuning": 1}, "trials": 4}),
        ("started", {"trial": 1, "spec": spec}),
        ("line", {"trial": 1, "spec": spec, "examples": 1024, "loss": 0.5}),
        ("stored", {"trial": 2, "spec": spec}),
        ("died", {"trial": 1, "spec": spec, "reason": "it was ended by SIGKILL"}),
        ("started", {"trial": 1, "spec": spec}),
        ("finished", {"trial": 1, "spec": spec, "result": result}),
        ("note", {"text": "[bold]not markup[/bold]"}),
    ]


def test_progress_is_plain_lines_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    with Progress(Console(file=out)) as progress:
        for event in events():
            progress(*event)
    assert out.getvalue().splitlines() == [
        "held (3) + tuning ...",
        "note: B=32 lr=0.1 seed 0: it was ended by SIGKILL",
        "  2/4 B=32 lr=0.1 seed 0: reached (goal) after 1,536 examples",
        "note: [bold]not markup[/bold]",
    ]


def test_progress_is_live_on_a_terminal() -> None:
    out = io.StringIO()
    with Progress(Console(file=out, force_terminal=True, width=100)) as progress:
        for event in events()[:4]:
            progress(*event)
        view = progress._view().plain
        progress.live.refresh()
    assert "held (3) + tuning: 1 of 4 trials done, 1 of them stored before" in view
    assert "B=32 lr=0.1 seed 0: 1,024 examples, validation loss 0.5" in view
    assert "1,024 examples" in out.getvalue()
    assert math.isfinite(progress.started)
