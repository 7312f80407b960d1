"""What does a test of a study look at? The events that it was told, and what lies in the store."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from batchscope.records import StudyData, TrialRecord
from batchscope.store.sqlite import open_store
from batchscope.testing.examples import bits

ROLES = ("reference", "held", "tuning", "tuned")
Heard = list[tuple[str, dict[str, Any]]]


def hearing(into: Heard) -> Callable[[str, dict[str, Any]], None]:
    return lambda kind, details: into.append((kind, details))


def kinds(heard: Heard, kind: str) -> list[dict[str, Any]]:
    return [details for k, details in heard if k == kind]


def data_of(path: Path, number: int = -1) -> StudyData:
    with open_store(path, read_only=True) as store:
        return store.study_data(store.studies()[number].id)


def records(data: StudyData) -> list[TrialRecord]:
    """Every trial once."""
    return list({t.spec: t for role in ROLES for t in getattr(data, role)}.values())


def facts(data: StudyData) -> Any:
    """Every bit of it but clock readings and attempts."""
    still = [
        dataclasses.replace(t, attempts=0, result=dataclasses.replace(t.result, seconds=0.0))
        for role in ROLES
        for t in getattr(data, role)
    ]
    return bits([still, data.choices, data.reference_examples, data.reference_reached, data.settings])
