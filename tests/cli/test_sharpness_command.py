"""Does `batchscope sharpness` find kept weights and their task, answer as JSON, and refuse in one sentence?"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from .conftest import ASKED, SMALL, Here, Study, really, sentence, task_file


def test_a_study_by_its_id_alone(tmp_path: Path) -> None:
    """The task is found again from another folder; asked again, nothing is measured."""
    folder, elsewhere = tmp_path / "a", tmp_path / "b"
    folder.mkdir()
    elsewhere.mkdir()
    task_file(folder, "def task():\n    return small_task.task()\n")
    how = ("--policy", "held", "--keep-weights", "--no-report", "--json")
    assert really("study", "mine.py", *ASKED, *how, cwd=folder).code == 0
    store = ("--store", str(folder / "batchscope.db"))
    study = json.loads(really("list", "--json", *store, cwd=elsewhere).out)["studies"][0]["id"]
    plan = json.loads(really("sharpness", study, "--dry-run", "--json", *store, cwd=elsewhere).out)
    assert (plan["points"], plan["batch_sizes"], plan["examples"]) == (2, [16, 64], 256)
    measured = really("sharpness", study[:6], *store, "--no-report", "--json", "--no-pictures", cwd=elsewhere)
    assert measured.code == 0, measured.err
    answer = json.loads(measured.out)
    assert [row["batch_size"] for row in answer["rows"]] == [16, 64]
    assert {claim["number"] for claim in answer["claims"]} == {6, 10}
    assert "2/2" in measured.err
    again = really("sharpness", study, *store, "--no-report", "--json", "--no-pictures", cwd=elsewhere)
    assert json.loads(again.out)["rows"] == answer["rows"]
    assert "measuring" not in again.err


def test_checkpoints_and_their_refusals(here: Here, tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    torch.save(model.state_dict(), "one.pt")
    torch.save({"state_dict": model.state_dict()}, "two.pt")
    torch.save(torch.nn.Linear(2, 2).state_dict(), "other.pt")
    Path("text.pt").write_text("no weights")
    files = ("one.pt", "two.pt", "--task", str(SMALL))
    ended = here("sharpness", *files, "--no-report", "--no-pictures", "--json")
    assert ended.code == 0, ended.err
    one, two = json.loads(ended.out)["points"]
    assert one["loss"] == two["loss"]
    for arguments, code, said in (
        (("one.pt", "two.pt"), 2, "write --task"),
        (("one.pt", "text.pt", "--task", str(SMALL)), 2, "cannot be read"),
        (("one.pt", "other.pt", "--task", str(SMALL)), 1, "expected weights of its own model"),
        ((*files, "--examples", "many"), 2, "expected --examples as a number or all"),
        ((*files, "--epsilons", "2"), 2, "expected half-widths between 0 and 1"),
        ((*files, "--at", "middle"), 2, 'expected at "best" or "last"'),
        ((*files, "--causes"), 1, "expected a study for --causes"),
    ):
        sentence(here("sharpness", *arguments, "--no-report", "--no-pictures"), code, said)


def test_a_study_without_weights(study: Study, here: Here) -> None:
    store = ("--store", str(study.store))
    found = json.loads(here("list", "--json", *store).out)["studies"][0]["id"]
    sentence(here("sharpness", found, *store), 1, "--keep-weights")
