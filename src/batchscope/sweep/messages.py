"""What is said to a worker? Which task all its jobs are of, and then one job at a time. Needs no torch."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TaskReference:
    """How a worker finds the task again: the reference, the folder and import path it was given in, and what it is."""

    reference: str
    folder: str
    path: tuple[str, ...]
    fingerprint: str

    @staticmethod
    def here(reference: str, fingerprint: str) -> TaskReference:
        """The task as this process sees it."""
        return TaskReference(reference, os.getcwd(), tuple(sys.path), fingerprint)


CONNECTION_LOST = "ConnectionLost"
"""The error that a rank answers with where it lost the others: not its own, so that the group looks for whose it is."""


@dataclass(frozen=True)
class Job:
    """One piece of work: its kind (`sweep/jobs.py` has the list) and its plain arguments."""

    id: str
    kind: str
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def devices(self) -> int:
        """How many it runs on, a process each."""
        return self.details["spec"]["arm"]["replicas"] if self.kind == "trial" else self.details.get("devices", 1)

    @property
    def together(self) -> bool:
        """Whether its workers do it as ranks, which meet, be it one."""
        return self.devices > 1 or self.kind == "scaling"
