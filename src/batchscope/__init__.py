"""Batchscope: what batch size does to your own training run, measured with error bars.

    import batchscope as bs
    result = bs.study("digits")

The public names, grouped by the question they answer; each is loaded on first use, so `import batchscope` is quick
and the parts that read a store work without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from batchscope.errors import BatchscopeError, CannotAnswer, StoreError, TaskError, UnsupportedTask, UsageError
    from batchscope.measure.branching import branches
    from batchscope.measure.meter import StepMeter
    from batchscope.measure.monitor import NoiseMonitor
    from batchscope.records import (
        Advice,
        BranchAnswer,
        Goal,
        Landscape,
        MatchResult,
        Measured,
        MicroBatch,
        NoiseReport,
        NoiseResult,
        ProfileResult,
        ScalingResult,
        SharpnessResult,
        StudyResult,
    )
    from batchscope.references import cite
    from batchscope.remedies.controller import BatchSizeController
    from batchscope.store.sqlite import open_store
    from batchscope.task import Task, load_task
    from batchscope.verbs.ceiling import largest_micro_batch
    from batchscope.verbs.landscape import landscape
    from batchscope.verbs.match import match
    from batchscope.verbs.noise import noise
    from batchscope.verbs.profile import profile
    from batchscope.verbs.recommend import recommend
    from batchscope.verbs.report import write_report
    from batchscope.verbs.scale import scale
    from batchscope.verbs.sharpness import sharpness
    from batchscope.verbs.study import study

_HOME = {
    # what is trained
    "Task": "batchscope.task",
    "Goal": "batchscope.records",
    "load_task": "batchscope.task",
    # what is asked
    "study": "batchscope.verbs.study",
    "profile": "batchscope.verbs.profile",
    "noise": "batchscope.verbs.noise",
    "recommend": "batchscope.verbs.recommend",
    "scale": "batchscope.verbs.scale",
    "sharpness": "batchscope.verbs.sharpness",
    "landscape": "batchscope.verbs.landscape",
    "match": "batchscope.verbs.match",
    "largest_micro_batch": "batchscope.verbs.ceiling",
    "write_report": "batchscope.verbs.report",
    # what a loop of one's own can use
    "StepMeter": "batchscope.measure.meter",
    "NoiseMonitor": "batchscope.measure.monitor",
    "branches": "batchscope.measure.branching",
    "BatchSizeController": "batchscope.remedies.controller",
    # what is answered
    "StudyResult": "batchscope.records",
    "ProfileResult": "batchscope.records",
    "MicroBatch": "batchscope.records",
    "NoiseResult": "batchscope.records",
    "NoiseReport": "batchscope.records",
    "Advice": "batchscope.records",
    "ScalingResult": "batchscope.records",
    "SharpnessResult": "batchscope.records",
    "MatchResult": "batchscope.records",
    "Landscape": "batchscope.records",
    "BranchAnswer": "batchscope.records",
    "Measured": "batchscope.records",
    "cite": "batchscope.references",
    # where it is kept
    "open_store": "batchscope.store.sqlite",
    # what can go wrong
    "BatchscopeError": "batchscope.errors",
    "UsageError": "batchscope.errors",
    "TaskError": "batchscope.errors",
    "UnsupportedTask": "batchscope.errors",
    "StoreError": "batchscope.errors",
    "CannotAnswer": "batchscope.errors",
}

__all__ = [
    "Advice",
    "BatchSizeController",
    "BatchscopeError",
    "BranchAnswer",
    "CannotAnswer",
    "Goal",
    "Landscape",
    "MatchResult",
    "Measured",
    "MicroBatch",
    "NoiseMonitor",
    "NoiseReport",
    "NoiseResult",
    "ProfileResult",
    "ScalingResult",
    "SharpnessResult",
    "StepMeter",
    "StoreError",
    "StudyResult",
    "Task",
    "TaskError",
    "UnsupportedTask",
    "UsageError",
    "branches",
    "cite",
    "landscape",
    "largest_micro_batch",
    "load_task",
    "match",
    "noise",
    "open_store",
    "profile",
    "recommend",
    "scale",
    "sharpness",
    "study",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Load a public name where it lives, once."""
    if name not in _HOME:
        raise AttributeError(f"module 'batchscope' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
