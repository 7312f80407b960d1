"""What is going on? A live view on a terminal, one plain line per finished trial elsewhere; always on stderr."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from batchscope.cli import interrupt
from batchscope.records import NO_REMEDY, MemoryProbe, TrialSpec

REFRESH_PER_SECOND = 4  # more would take the cores from the trials


class Progress:
    """A listener for verbs: call it with (kind, details)."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.phase, self.total, self.done, self.stored = "checking the task", 0, 0, 0
        self.running: dict[int | str, str] = {}
        self.started = time.monotonic()
        self.live = Live(
            console=console, refresh_per_second=REFRESH_PER_SECOND, transient=True, get_renderable=self._view
        )

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def __call__(self, kind: str, details: dict[str, Any]) -> None:
        """Take in one event; raises KeyboardInterrupt where Ctrl-C was swallowed before."""
        interrupt.check()
        if kind == "phase":
            self.phase = " + ".join(
                f"{role} ({count})" if count > 1 else role for role, count in details["roles"].items()
            )
            self.total, self.done, self.stored = details["trials"], 0, 0
            self.running.clear()
            self._line(f"{self.phase} ...")
        elif kind == "note":
            self.console.print(Text(f"note: {details['text']}"), soft_wrap=True)
        elif kind == "line":
            self.running[details["trial"]] = (
                f"{_arm(details['spec'])}: {details['examples']:,} examples, validation loss {details['loss']:.4g}"
            )
        elif kind == "started":
            self.running[details["trial"]] = f"{_arm(details['spec'])}: starting"
        elif kind in ("finished", "stored", "died"):
            self._ended(kind, details)
        elif kind == "probe":
            self._probed(details["probe"])
        elif kind == "progress":
            self.running[details.get("label", 0)] = _doing(details)
        elif kind == "measured":
            self.running.pop(details["label"], None)
            self._line(f"  {details['done']}/{details['of']} {details['label']}")

    def _ended(self, kind: str, details: dict[str, Any]) -> None:
        self.running.pop(details["trial"], None)
        if kind == "died":
            self.console.print(Text(f"note: {_arm(details['spec'])}: {details['reason']}"), soft_wrap=True)
            return
        self.done += 1
        if kind == "finished":
            result = details["result"]
            how = f"{result.outcome.replace('_', ' ')} ({result.ended_by}) after {result.examples:,} examples"
            self._line(f"  {self.done}/{self.total} {_arm(details['spec'])}: {how}")
        else:
            self.stored += 1

    def _probed(self, probe: MemoryProbe) -> None:
        self.running.clear()
        peak = f"peak {probe.peak_bytes / 2**20:,.0f} MiB" if probe.peak_bytes else "no peak"
        outcome = probe.outcome.replace("_", " ")
        self._line(
            f"  micro-batch {probe.micro_batch_size}: {outcome}, {peak}" + f" ({probe.reason})" * bool(probe.reason)
        )

    def _line(self, text: str) -> None:
        """A plain line, only where there is no live view."""
        if not self.console.is_terminal:
            self.console.print(Text(text), soft_wrap=True)

    def _view(self) -> Text:
        head = f"{time.monotonic() - self.started:5.0f} s  {self.phase}"
        if self.total:
            head += f": {self.done} of {self.total} trials done" + (
                f", {self.stored} of them stored before" if self.stored else ""
            )
        return Text(
            "\n".join([head, *(f"        {text}" for text in self.running.values())]), overflow="ellipsis", no_wrap=True
        )


def _doing(line: dict[str, Any]) -> str:
    """What a worker is at, while it measures seconds or bytes."""
    if line["phase"] == "noise":
        return ", ".join(f"{line[k]:,} {k}" for k in ("steps", "examples") if k in line)
    if line["phase"] == "sharpness":
        return f"{line['label']}, {line['what']}: {line['examples']:,} examples gone through"
    if line["phase"] == "timing":
        return f"micro-batch {line['batch_size']}"
    return f"{line['phase']}: {line['bytes'] / 2**20:,.0f} MiB at most so far"


def _arm(spec: TrialSpec) -> str:
    arm = spec.arm
    remedy = f"{arm.remedy} " if arm.remedy != NO_REMEDY else ""
    return f"{remedy}B={arm.batch_size} lr={arm.learning_rate:.4g} seed {spec.seed}"
