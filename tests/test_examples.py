"""Do the examples run as their first lines say?"""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
BATCHSCOPE = Path(sys.executable).parent / "batchscope"
ASKED = {
    "01_task_file.py": ["--batch-sizes", "16,64", "--policy", "held", "--seeds", "2"],
    "03_dataset.py": ["--batch-sizes", "8,32", "--policy", "held", "--seeds", "1"],
}
METERED = {  # the framework, whose loop, the batch size of an optimiser step
    "04_step_meter.py": ("torch", "by hand", 64),
    "05_step_meter_lightning.py": ("lightning", "Lightning", 128),
    "06_step_meter_transformers.py": ("transformers", "Transformers", 128),
}


def test_every_example_is_run_here() -> None:
    assert {p.name for p in EXAMPLES.glob("*.py")} == {*ASKED, "02_notebook.py", *METERED}


@pytest.mark.parametrize("name", sorted(ASKED))
def test_task_files(name: str, tmp_path: Path) -> None:
    command = [
        BATCHSCOPE,
        "study",
        EXAMPLES / name,
        *ASKED[name],
        "--json",
        "--no-report",
        "--store",
        tmp_path / "s.db",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert len(answer["rows"]) == 2
    assert all(row["reached"] > 0 for row in answer["rows"][:1])


def test_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    result = runpy.run_path(str(EXAMPLES / "02_notebook.py"))["main"]()
    assert [row.batch_size for row in result.rows] == [16, 64, 256]
    assert result.rows[0].reached == 2  # the own point, which the open goal was taken from
    assert "batch size 16" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")  # Lightning's own
@pytest.mark.filterwarnings("ignore:The .* does not have many workers")
@pytest.mark.parametrize("name", sorted(METERED))
def test_step_meters(name: str, capsys: pytest.CaptureFixture) -> None:
    framework, loop, batch_size = METERED[name]
    pytest.importorskip(framework)
    timing = runpy.run_path(str(EXAMPLES / name))["main"]()
    assert timing.loop == loop
    assert [t.batch_size for t in timing.timings] == [batch_size]
    assert all(s > w >= 0 for t in timing.timings for s, w in zip(t.seconds_per_step, t.phases["data"], strict=True))
    assert f"batch size {batch_size}: " in capsys.readouterr().out
