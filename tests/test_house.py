"""Is the house in order? Imports run one way, the reading half needs no torch, the public names are the list."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import batchscope

SOURCE = Path(batchscope.__file__).parent
FACTS = {"errors", "records", "references"}
READING = FACTS | {"analysis"}
TRAINING = FACTS | {"task", "tasks"}
ALLOWED = {
    "errors": set(),
    "records": set(),
    "papers": set(),
    "references": {"records", "papers"},
    "analysis": FACTS,
    "store": READING,
    "report": READING,
    "task": FACTS | {"tasks"},  # the names of the built-in tasks, nothing of theirs
    "tasks": READING | {"task"},
    "training": TRAINING,
    "measure": TRAINING | {"analysis", "training"},  # the monitor answers in its own loop
    "remedies": TRAINING | {"analysis", "training", "measure"},
    "sweep": READING | TRAINING | {"store", "report", "training", "measure", "remedies"},
    "testing": READING | TRAINING | {"store", "training", "remedies", "sweep"},
    "verbs": READING | TRAINING | {"store", "report", "training", "measure", "remedies", "sweep"},
    "integrations": FACTS | {"training", "measure", "remedies", "verbs"},
    "__main__": {"cli"},
    "cli": READING | TRAINING | {"store", "report", "training", "measure", "remedies", "sweep", "verbs"},
}
WITHOUT_TORCH = (
    "records",
    "errors",
    "references",
    "analysis.table",
    "store.sqlite",
    "analysis.profile",
    "report.html",
    "report.terminal",
    "report.profile_html",
    "report.profile_terminal",
    "report.noise_html",
    "report.noise_terminal",
    "report.advice_html",
    "report.advice_terminal",
    "report.scaling_html",
    "report.scaling_terminal",
    "analysis.flatness",
    "report.flatness_html",
    "report.flatness_terminal",
    "analysis.matching",
    "report.match_html",
    "report.match_terminal",
    "verbs.report",
    "cli.app",
    "cli.launcher",
)


def rooms(path: Path) -> set[str]:
    """The top-level parts of batchscope that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "batchscope" else [f"batchscope.{a.name}" for a in node.names]
        found |= {n.split(".")[1] for n in names if n.startswith("batchscope.")}
    return found - set(batchscope.__all__)


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_run_one_way(path: Path) -> None:
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    assert rooms(path) <= ALLOWED[room] | {room}


def test_every_file_opens_with_its_question() -> None:
    for path in SOURCE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


CHECKED_WITHOUT = {"accelerate", "lightning", "pynvml", "ray", "transformers"}  # `make check` does not install them


def test_extras_are_imported_by_name() -> None:
    """An `import` statement of what is not installed fails the type check."""
    for path in SOURCE.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
        names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
        assert not CHECKED_WITHOUT & {name.split(".")[0] for name in names}, f"{path}: importlib.import_module instead"


NO_TORCH = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, NoTorch())
"""


def test_reading_half_needs_no_torch() -> None:
    imports = "\n".join(f"import batchscope.{name}" for name in WITHOUT_TORCH)
    subprocess.run([sys.executable, "-c", NO_TORCH + imports], check=True)


def test_public_names() -> None:
    assert sorted(batchscope.__all__) == batchscope.__all__
    assert set(batchscope.__all__) == set(batchscope._HOME)
    for name in batchscope.__all__:
        assert getattr(batchscope, name).__name__ == name
