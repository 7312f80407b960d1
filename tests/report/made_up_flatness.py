"""Made-up answers of `sharpness`, shared by the report's tests: closed forms, joined with a made-up study's traces."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from made_up import HOSTILE, synthetic_study

from batchscope.analysis.flatness import analyse_sharpness
from batchscope.records import LayerDistance, SharpnessData, SharpnessResult
from batchscope.report.flatness_figures import Drawing, drawings_of


def _worlds() -> Any:
    path = Path(__file__).parents[1] / "analysis" / "flatness_worlds.py"
    spec = importlib.util.spec_from_file_location("made_up_worlds", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


worlds = _worlds()


@functools.cache
def whole() -> SharpnessResult:
    """Held and tuned, four batch sizes, three seeds, pictures and causal runs, with the study's traces."""
    return analyse_sharpness(worlds.made_up_sharpness(causes=True), synthetic_study(n_batch=4))


@functools.cache
def held() -> SharpnessResult:
    """Two batch sizes at the held learning rate, numbers only, no study at hand."""
    return analyse_sharpness(worlds.made_up_sharpness((8, 64), ("held",), drawn=False), None)


@functools.cache
def one_seed() -> SharpnessResult:
    """One seed per batch size: nothing can be judged."""
    return analyse_sharpness(worlds.made_up_sharpness((8, 64), ("tuned",), seeds=1, drawn=False), None)


@functools.cache
def files() -> SharpnessResult:
    """Two checkpoints that came as files."""
    return analyse_sharpness(worlds.made_up_files(), None)


def bare() -> SharpnessResult:
    """Boxes alone: nothing else was asked for, or everything else failed."""
    data = worlds.made_up_sharpness((8, 64), ("held",), drawn=False)
    curved = ("largest_eigenvalue", "smallest_eigenvalue", "trace", "density", "batch_sharpness")
    nothing = dict.fromkeys((*curved, "adaptive_sharpness", "adaptive_eigenvalue"))
    points = tuple(dataclasses.replace(p, **nothing, notes=("no second derivative",)) for p in data.points)
    return analyse_sharpness(dataclasses.replace(data, points=points), None)


def hostile() -> SharpnessResult:
    """A result whose task, device, metrics, layers and notes are named like an attack on the page."""
    result = whole()
    conditions = dataclasses.replace(
        result.data.conditions, device_name=HOSTILE, platform=HOSTILE, versions={HOSTILE: HOSTILE}
    )
    points = tuple(
        dataclasses.replace(
            p,
            label=f"{HOSTILE} {p.label}",
            metrics={HOSTILE: 1.0},
            layers=(LayerDistance(HOSTILE, 1.0, 2.0, 3.0), *p.layers),
        )
        for p in result.data.points
    )
    lines = tuple(dataclasses.replace(x, labels=tuple(f"{HOSTILE} {n}" for n in x.labels)) for x in result.data.lines)
    data: SharpnessData = dataclasses.replace(
        result.data,
        task=HOSTILE,
        conditions=conditions,
        points=points,
        lines=lines,
        notes=(f"a note on {HOSTILE}",),
        normed=(HOSTILE,),
        study_id=HOSTILE,
        settings={HOSTILE: 1.0},
    )
    again = analyse_sharpness(data, synthetic_study(n_batch=4))
    claims = tuple(dataclasses.replace(c, why=HOSTILE) for c in again.claims)
    return dataclasses.replace(again, claims=claims, report=f"/tmp/{HOSTILE}.html")


@functools.cache
def drawn(make: Callable[[], SharpnessResult]) -> list[Drawing]:
    """Everything that one of them draws, drawn once."""
    return drawings_of(make())


ALL = {"whole": whole, "held": held, "one seed": one_seed, "files": files, "bare": bare, "hostile": hostile}
