"""Does `profile` find the largest micro-batch that fits, in few processes, and predict the peaks that it did not run?

For limits of 1 GiB and 2 GiB of resident memory on the CPU, and three tasks (a CNN whose data outweigh its weights, a
small transformer, a wide MLP whose activations outweigh everything), the search of `profile` beside plain bisection:
the middle of the bracket until its ends are 1 % apart, from nothing known, with the same probes in fresh processes.
Then PREDICTED more sizes are run, and every peak measured at a size that the fit did not use is compared with the one
predicted from the search's probes alone.

Targets (checked with --check), in every case:
    largest size / bisection's       0.95 to 1.05
    child processes that train       at most 6 (one more reads the facts of the task; it trains nothing)
    predicted / measured peak        within 10 %

Bytes, not seconds: it may run on a machine that is not idle, as long as nothing swaps.

    python benchmarks/memory.py [--check] [--save] [--only TASK] [--limit GIB]       about 15 minutes
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from batchscope.analysis.memory import predicted_bytes, ran_to_end
from batchscope.records import MemoryProbe
from batchscope.sweep.executors.local import LocalExecutor
from batchscope.sweep.jobs import Job, TaskReference, place
from batchscope.sweep.probes import Prober
from batchscope.task import Task, load_task
from batchscope.training.checks import check_task
from batchscope.training.device import pick_device, set_up
from batchscope.verbs.ceiling import Ceiling, largest
from batchscope.verbs.machine import call
from environment import environment, save

GIB = 1 << 30
LIMITS = (1, 2)  # GiB
TASKS = ("fashion-mnist-cnn", "stdlib-lm", f"{Path(__file__)}:wide_mlp")
NEAR = 1.2  # a bracket so narrow, relative to its lower end, is near the limit
CLOSE = 0.01  # bisection ends where its bracket is so narrow, relative to its lower end
PREDICTED = (0.1, 0.3, 0.55, 0.8)  # of the largest size that fits: where a peak is predicted and then measured
LEAST_RATIO, MOST_RATIO, MOST_PROCESSES, MOST_ERROR = 0.95, 1.05, 6, 0.10
INPUTS, WIDTH, CLASSES = 64, 16_384, 10


def wide(examples: int) -> Task:
    """64 -> 16,384 -> 10 with Adam: 64 KiB for each activation of an example, whose input is 256 bytes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(examples, INPUTS, generator=generator)
    y = torch.randint(CLASSES, (examples,), generator=generator)
    return Task(
        name="wide-mlp",
        model=lambda: nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.GELU(), nn.Linear(WIDTH, CLASSES)),
        loss=F.cross_entropy,
        train=(x, y),
        valid=(x[:256], y[:256]),
        optimizer=lambda model, lr: torch.optim.Adam(model.parameters(), lr=lr),
        lr=0.001,
        batch_size=64,
    )


def wide_mlp() -> Task:
    """The wide MLP with more examples than fit into 2 GiB."""
    return wide(1 << 15)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A peak that the search did not run."""

    micro_batch_size: int
    measured_bytes: int
    predicted_bytes: int

    @property
    def error(self) -> float:
        """Relative to what was measured."""
        return abs(self.predicted_bytes / self.measured_bytes - 1)


@dataclasses.dataclass(frozen=True)
class Case:
    """One task under one limit: what both searches found, and how well peaks were predicted."""

    task: str
    limit_gib: int
    train_size: int
    found: int
    processes: int
    seconds: float
    binding: str
    bisected: int
    bisection_processes: int
    bisection_seconds: float
    predictions: tuple[Prediction, ...]

    @property
    def ratio(self) -> float:
        """The size found over bisection's."""
        return self.found / self.bisected if self.bisected else float(self.found == 0)

    @property
    def errors(self) -> list[float]:
        """Relative errors of the predictions."""
        return [p.error for p in self.predictions]

    def missed(self) -> list[str]:
        """The targets of the header that this case misses."""
        wrong = []
        if not LEAST_RATIO <= self.ratio <= MOST_RATIO:
            wrong.append(f"size / bisection's is {self.ratio:.3f}, target {LEAST_RATIO} to {MOST_RATIO}")
        if self.processes > MOST_PROCESSES:
            wrong.append(f"{self.processes} processes, target at most {MOST_PROCESSES}")
        if not self.errors or max(self.errors) > MOST_ERROR:
            worst = f"{max(self.errors):.1%}" if self.errors else "of nothing"
            wrong.append(f"worst error of a predicted peak is {worst}, target at most {MOST_ERROR:.0%}")
        return wrong


def search(reference: str, task: Task, limit_bytes: int) -> Ceiling:
    """What `profile` does to find the ceiling, on one thread."""
    found = TaskReference.here(reference, check_task(task).fingerprint)
    conditions = set_up(1, pick_device(), task.precision)
    with LocalExecutor(found, 1) as executor:
        facts = call(executor, Job("facts", "facts", place(conditions)))
    return largest(found, conditions, facts, first=task.batch_size, cap=task.train_size, memory_limit=limit_bytes)


def bisect(prober: Prober, cap: int) -> tuple[int, list[MemoryProbe]]:
    """(largest size that fits, the probes): nothing is known but that 0 fits and cap + 1 does not.

    Peaks of one size differ between processes by some 4 % (by which freed blocks happen to merge), so that near the
    limit a size may fit by luck: there it counts as fitting if it does so twice.
    """
    low, high, probes = 0, cap + 1, []
    while high - low > max(1, CLOSE * low):
        middle = (low + high) // 2
        probes.append(prober.probe(middle))
        if probes[-1].fits and high < NEAR * low:
            probes.append(prober.probe(middle))
        low, high = (middle, high) if probes[-1].fits else (low, middle)
    return low, probes


def predictions(ceiling: Ceiling, others: list[MemoryProbe]) -> tuple[Prediction, ...]:
    """Every probe of a size that the search did not run, and that ran to its end, beside what the search predicts."""
    used = {probe.micro_batch_size for probe in ceiling.memory.probes}
    made = []
    for probe in sorted(others, key=lambda p: p.micro_batch_size):
        predicted = predicted_bytes(ceiling.memory.probes, probe.micro_batch_size)
        if probe.micro_batch_size not in used and ran_to_end(probe) and predicted is not None:
            made.append(Prediction(probe.micro_batch_size, probe.peak_bytes or 0, predicted))
    return tuple(made)


def measure(reference: str, limit_gib: int) -> Case:
    """Both searches and the predictions of one case."""
    task = load_task(reference)
    started = time.monotonic()
    ceiling = search(reference, task, limit_gib * GIB)
    searched, memory = time.monotonic(), ceiling.memory
    bisected, halvings = bisect(ceiling.prober, task.train_size)
    ended = time.monotonic()
    found = memory.largest_micro_batch_size or 0
    sizes = {max(1, round(share * found)) for share in PREDICTED}
    others = [ceiling.prober.probe(size) for size in sorted(sizes - {p.micro_batch_size for p in halvings})]
    return Case(
        task=task.name,
        limit_gib=limit_gib,
        train_size=task.train_size,
        found=found,
        processes=len(memory.probes),
        seconds=searched - started,
        binding=memory.binding,
        bisected=bisected,
        bisection_processes=len(halvings),
        bisection_seconds=ended - searched,
        predictions=predictions(ceiling, halvings + others),
    )


def line(case: Case) -> str:
    """One line of the table."""
    errors = case.errors or [float("nan")]
    worst = max(case.predictions, key=lambda p: p.error).micro_batch_size if case.predictions else 0
    return (
        f"{case.task:17} {case.limit_gib:3d} GiB {case.found:7,d} {case.processes:5d} {case.seconds:5.0f} s | "
        f"{case.bisected:7,d} {case.bisection_processes:5d} {case.bisection_seconds:5.0f} s | {case.ratio:6.3f} | "
        f"{statistics.median(errors):6.1%} {max(errors):6.1%} at {worst:6,d} {len(case.errors):4d}   {case.binding}"
    )


def main() -> None:
    """Measure, print, and with --check fail where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="exit 1 where a target in the header is missed")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/memory.json")
    parser.add_argument("--only", metavar="TASK", help="one task: its name, or the end of its reference")
    parser.add_argument("--limit", type=int, metavar="GIB", choices=LIMITS, help="one limit")
    arguments = parser.parse_args()
    tasks = [t for t in TASKS if arguments.only is None or t.endswith(arguments.only)]
    if not tasks:
        parser.error(f"expected --only to be fashion-mnist-cnn, stdlib-lm or wide_mlp, got {arguments.only!r}")
    if torch.cuda.is_available():
        sys.exit("expected a machine without a CUDA device, got one: hide it with CUDA_VISIBLE_DEVICES=''")

    where = environment()
    print("  ".join(f"{k}: {v}" for k, v in where.items()))
    print(f"\n{'':26}  profile's search    | plain bisection       |        | error of predicted peak")
    print(f"{'task':17}   limit {'size':>7} {'runs':>5} {'time':>7} | {'size':>7} {'runs':>5} {'time':>7} | ", end="")
    print(f" ratio | {'median':>6} {'worst':>16} {'n':>4}   bound by")
    cases, wrong = [], []
    for reference in tasks:
        for limit in (arguments.limit,) if arguments.limit else LIMITS:
            cases.append(measure(reference, limit))
            print(line(cases[-1]), flush=True)
            wrong += [f"{cases[-1].task} at {limit} GiB: {text}" for text in cases[-1].missed()]
            if arguments.save:
                rows = [dataclasses.asdict(c) | {"ratio": c.ratio, "errors": c.errors} for c in cases]
                save("memory", {"environment": where, "cases": rows})
    for text in wrong:
        print(f"MISSED  {text}")
    sys.exit(1 if wrong and arguments.check else 0)


if __name__ == "__main__":
    main()
