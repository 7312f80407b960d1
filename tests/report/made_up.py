"""A made-up study and its answer, shared by the report's tests; the builder itself lives with the analysis tests."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from pathlib import Path
from typing import Any

from batchscope.analysis.table import analyse
from batchscope.records import Goal, StudyData, StudyResult

HOSTILE = "<script>alert(1)</script>"


def _builders() -> Any:
    path = Path(__file__).parents[1] / "analysis" / "builders.py"
    spec = importlib.util.spec_from_file_location("made_up_builders", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


synthetic_study = _builders().synthetic_study


@functools.cache
def study(**options: Any) -> tuple[StudyResult, StudyData]:
    """An analysed study: (answer, data)."""
    data = synthetic_study(**options)
    return analyse(data), data


def hostile() -> tuple[StudyResult, StudyData]:
    """A study whose task, metric, device and notes are named like an attack on the page."""
    data = synthetic_study(n_batch=3, name=HOSTILE)
    conditions = dataclasses.replace(data.settings.conditions, device_name=HOSTILE, platform=HOSTILE)
    settings = dataclasses.replace(data.settings, conditions=conditions, metrics=("loss", HOSTILE))
    data = dataclasses.replace(data, settings=settings, notes=(f"a note on {HOSTILE}",))
    result = analyse(data)
    tests = {HOSTILE: result.rows[0].min_validation_loss}
    rows = tuple(dataclasses.replace(r, test=tests) for r in result.rows)
    claims = tuple(dataclasses.replace(c, why=HOSTILE) for c in result.claims)
    goal = Goal(HOSTILE, at_most=0.36)
    path = f"/tmp/{HOSTILE}.html"
    return dataclasses.replace(result, rows=rows, claims=claims, goal=goal, report=path), data
