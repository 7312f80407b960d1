"""Is what cannot be run refused in one sentence, with the right code, before anything is stored?"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ASKED, SMALL, Here, sentence, task_file

COMMANDS = ("study", "profile", "report", "list", "show", "export")


# --- help ---


def test_help_needs_no_torch_and_every_command_has_one(here: Here) -> None:
    script = "import batchscope.cli.app, sys; assert not {'torch', 'scipy', 'altair'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
    for arguments in ([], ["--help"], *([name, "--help"] for name in COMMANDS)):
        ended = here(*arguments)
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.startswith("Usage: batchscope")
    assert all(name in here("--help").out for name in COMMANDS)


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
        (["profile"], ["argument"]),
        (["profile", "nope"], ["no task named 'nope'"]),
        (["profile", "{small}", "--memory-limit", "much"], ["number of bytes", "'much'", "--memory-limit 2GiB"]),
        (["profile", "{small}", "--memory-limit", "0"], ["memory limit in bytes above 0", "0"]),
        (["profile", "{small}", "--batch-sizes", "16,257"], ["256 training examples", "257"]),
        (["profile", "{small}", "--seed=-1"], ["expected a seed from 0 up", "-1"]),
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
