"""What is the largest micro-batch that fits? Probes in fresh processes, until the answer has been run.

`largest_micro_batch` is the same search for other people's loops: the micro-batch and the accumulation that keep a
global batch size.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from batchscope.analysis.memory import conclusion, fit_memory, next_size
from batchscope.errors import CannotAnswer, UsageError
from batchscope.records import Conditions, MemoryProbe, MemoryProfile, MicroBatch
from batchscope.sweep.executors.local import LocalExecutor
from batchscope.sweep.jobs import Job, TaskReference, place
from batchscope.sweep.probes import PATIENCE_SECONDS, Prober
from batchscope.sweep.runner import Listener
from batchscope.task import Task, load_task
from batchscope.training.checks import check_task
from batchscope.training.device import cores, pick_device, remember_settings, set_up
from batchscope.training.seeding import drawing_from
from batchscope.verbs.machine import call

CPU_SHARE = 0.8  # of the machine's memory: the default limit on the CPU (a guess)
CUDA_MARGIN = 0.05  # of the card's memory, left of what is free: context, libraries, fragments (a guess)
MOST_PROBES = 6
NEAR = 0.95  # of the limit: peaks of one size were seen to differ by 5 % between processes
GIB = float(1 << 30)


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """The search's end."""

    memory: MemoryProfile
    prober: Prober


def check_limit(memory_limit: Any) -> None:
    """UsageError for what is not a number of bytes."""
    if memory_limit is not None and (
        not isinstance(memory_limit, int) or isinstance(memory_limit, bool) or memory_limit < 1
    ):
        raise UsageError(f"expected a memory limit in bytes above 0, got {memory_limit!r}: write --memory-limit 2GiB")


def default_limit(conditions: Conditions, facts: dict[str, Any]) -> tuple[int, str]:
    """(bytes, where they come from) where no limit was given."""
    total, free = facts["total_bytes"], facts["free_bytes"]
    if conditions.device == "cpu":
        return int(CPU_SHARE * total), f"{CPU_SHARE:.0%} of the machine's {total / GIB:.1f} GiB"
    margin = int(CUDA_MARGIN * total)
    return max(1, free - margin), f"the {free / GIB:.1f} GiB free on the device less a margin of {margin / GIB:.1f} GiB"


def largest(
    reference: TaskReference,
    conditions: Conditions,
    facts: dict[str, Any],
    *,
    first: int,
    cap: int,
    cap_is: str = "data set",
    memory_limit: int | None = None,
    patience: float = PATIENCE_SECONDS,
    hear: Listener = lambda kind, details: None,
    on_line: Callable[[dict[str, Any]], None] = lambda line: None,
) -> Ceiling:
    """Search from `first` up to `cap`; `cap_is` says what that is: the data set's size, or a batch size asked for."""
    limit, limit_is = default_limit(conditions, facts)
    if memory_limit is not None:
        limit, limit_is = memory_limit, "asked for"
    prober = Prober(reference, conditions, limit, largest=facts["largest"], patience=patience, listen=on_line)
    search = _Search(prober, limit, first, cap, hear)
    search.run()
    found, binding, reason = conclusion(search.probes, limit, first, cap, cap_is)
    memory = MemoryProfile(
        limit_bytes=limit,
        limit_is=limit_is,
        measured_as=facts["measured_as"],
        sample_is=facts["sample_is"],
        probes=tuple(search.every),
        largest_micro_batch_size=found,
        binding=binding,
        reason=reason,
        conditions=conditions,
        fit=fit_memory(search.every),
    )
    return Ceiling(memory, prober)


class _Search:
    """Probes until the search is over, the last one a repeat: on the CPU a size near the limit may fit by luck.

    Which freed blocks merge differs from process to process, and peaks of one size by some 5 % with it. So the size
    found is run once more where its peak is that near to the limit, and counts as one that does not fit if it did not.
    """

    def __init__(self, prober: Prober, limit: int, first: int, cap: int, hear: Listener) -> None:
        self.prober, self.limit, self.first, self.cap, self.hear = prober, limit, first, cap, hear
        self.probes: list[MemoryProbe] = []  # one for each size, the worse one of a repeat
        self.every: list[MemoryProbe] = []  # in the order they ran

    def run(self) -> None:
        """At most MOST_PROBES processes, repeats included; on the CPU one is set aside for a repeat."""
        aside = 1 if self.prober.conditions.device == "cpu" else 0
        while len(self.every) < MOST_PROBES:
            repeats = len(self.every) - len(self.probes)
            most = MOST_PROBES - max(repeats, aside)
            size = next_size(self.probes, self.limit, self.first, self.cap, most)
            if size is None:
                size = self._doubtful()
            if size is None:
                return
            self._take(self.prober.probe(size))

    def _doubtful(self) -> int | None:
        """The largest size that fits, if it was run once and its peak is near the limit."""
        found = max((p for p in self.probes if p.fits), key=lambda p: p.micro_batch_size, default=None)
        if found is None or self.prober.conditions.device != "cpu":
            return None
        runs = sum(p.micro_batch_size == found.micro_batch_size for p in self.every)
        return found.micro_batch_size if runs < 2 and (found.peak_bytes or 0) > NEAR * self.limit else None

    def _take(self, probe: MemoryProbe) -> None:
        self.every.append(probe)
        self.hear("probe", {"probe": probe, "limit": self.limit})
        same = next((p for p in self.probes if p.micro_batch_size == probe.micro_batch_size), None)
        if same is not None and probe.fits and (same.peak_bytes or 0) >= (probe.peak_bytes or 0):
            return
        self.probes = [*(p for p in self.probes if p is not same), probe]


def largest_micro_batch(
    task: str,
    *,
    batch_size: int | None = None,
    memory_limit: int | None = None,
    patience: float = PATIENCE_SECONDS,
    listen: Listener | None = None,
) -> MicroBatch:
    """The micro-batch size and accumulation with which `batch_size` examples fit; both were run.

    Args:
        task: a reference (`path.py`, `package.module:function`, built-in name): probes are processes of their own, so
            that running out of memory costs your process nothing.
        batch_size: the global batch size to keep; default: the task's own.
        memory_limit: bytes; default: as in `profile`.
        patience: seconds without a sign of life after which a probe counts as hung.

    With batch norm a smaller micro-batch is another training: its statistics are those of the micro-batch.

    Raises CannotAnswer where not even one example fits, with the reason.
    """
    if not isinstance(task, str):
        raise UsageError(
            f"expected a task reference, got {type(task).__name__}: memory is measured in processes of their own, "
            "which load the task by its path; write largest_micro_batch('my_task.py')"
        )
    check_limit(memory_limit)
    hear: Listener = listen or (lambda kind, details: None)
    with drawing_from(0):
        loaded = load_task(task)
        size = loaded.batch_size if batch_size is None else batch_size
        if not isinstance(size, int) or not 1 <= size <= loaded.train_size:
            raise UsageError(f"expected a batch size from 1 to the {loaded.train_size} examples, got {size!r}")
        reference = TaskReference.here(task, check_task(loaded).fingerprint)
        conditions = _conditions(loaded)
        with LocalExecutor(reference, 1) as executor:
            facts = call(executor, Job("facts", "facts", place(conditions)))
        ceiling = largest(
            reference,
            conditions,
            facts,
            first=size,
            cap=size,
            cap_is="batch size asked for",
            memory_limit=memory_limit,
            patience=patience,
            hear=hear,
        )
    return _split(ceiling, size)


def _conditions(task: Task) -> Conditions:
    """All cores, the plain engine: what an ordinary loop trains with."""
    put_back = remember_settings()
    try:
        return set_up(cores(), pick_device(), task.precision)
    finally:
        put_back()


def _split(ceiling: Ceiling, batch_size: int) -> MicroBatch:
    """The fewest micro-batches of equal size where that is possible; the size returned has been run."""
    memory = ceiling.memory
    most = memory.largest_micro_batch_size
    if most is None:
        raise CannotAnswer(f"expected some micro-batch to fit into {memory.limit_bytes / GIB:.2f} GiB: {memory.reason}")
    micro = equal_micro_batch(batch_size, most)
    run = {p.micro_batch_size: p for p in sorted(memory.probes, key=lambda p: p.peak_bytes or 0) if p.fits}
    probe = run.get(micro) or ceiling.prober.probe(micro)
    if not probe.fits:  # memory is not monotone in the batch size everywhere: fall back on what ran
        micro, probe = most, run[most]
    return MicroBatch(
        micro_batch_size=micro,
        accumulation=math.ceil(batch_size / micro),
        batch_size=batch_size,
        peak_bytes=probe.peak_bytes or 0,
        limit_bytes=memory.limit_bytes,
        largest_micro_batch_size=most,
        memory=memory,
    )


def equal_micro_batch(batch_size: int, most: int) -> int:
    """The batch size's largest divisor that is at most `most`; the most even cut where that is less than half of it.

    Micro-batches of one size are what most loops expect; a prime batch size would have to go one example at a time.
    """
    fewest = math.ceil(batch_size / most)
    for count in range(fewest, 2 * fewest + 1):
        if batch_size % count == 0:
            return batch_size // count
    return math.ceil(batch_size / fewest)
