"""What does a CUDA device change? Graph replay, bf16, the largest batch, and what an out-of-memory probe leaves behind.

    baseline   free device memory, as a fresh process sees it, before and after a probe that runs out of memory
    largest    the largest micro-batch of a wide MLP below the default limit (the device's free memory less a margin),
               and of the CNN through a whole `profile` under 2 GiB, with its throughput and knee
    steps      seconds per step of the Fashion-MNIST MLP and CNN at batch 32 and 2048, in fp32 and bf16, with and
               without graph replay (and, for the CNN, channels-last), windows of all of them interleaved

Targets (checked with --check):
    free memory after the probe      within 32 MiB of before, and the probe did run out of memory
    largest micro-batch              was run and fits
    plain / graphed at batch 32      above 1, MLP and CNN, fp32: the interval of the paired median ratio reaches it;
                                     and wherever replay was asked for, steps were replayed

The pictures are random: neither seconds nor bytes depend on them, and no data set has to travel to the device. It needs
torch, numpy and scipy only. Without a CUDA device it exits 1.

    python benchmarks/gpu.py [--check] [--save | --only baseline|largest|steps]       about 5 minutes
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from batchscope.measure.throughput import SLOWED, endless
from batchscope.records import Engine, MemoryProfile, to_plain
from batchscope.sweep.jobs import TaskReference
from batchscope.sweep.probes import Prober
from batchscope.task import Task, load_task
from batchscope.tasks import fashion_mnist_cnn, fashion_mnist_mlp
from batchscope.training.batches import Source, make_source
from batchscope.training.checks import check_task
from batchscope.training.device import now, set_up
from batchscope.training.graphs import GraphedStep
from batchscope.training.seeding import seed_everything
from batchscope.training.step import make_model, make_step
from batchscope.verbs.ceiling import largest_micro_batch
from batchscope.verbs.profile import profile
from environment import environment, save
from memory import wide
from ratios import Ratio, ratio, shown

GIB, MIB = 1 << 30, 1 << 20
CUDA = torch.device("cuda")
EXAMPLES = 54_000  # training images of the real tasks
SIZES = (32, 2048)
ROUNDS, WINDOW_SECONDS = 21, 0.1
WARM_UP = 20  # steps before the first window: libraries load, the graph is captured
PROFILE_LIMIT = 2 * GIB
LEFT_BEHIND = 32 * MIB  # what a driver may keep of a process that is gone (a guess)
ENGINES = {
    "mlp": {"plain": Engine(), "graphed": Engine(graphed=True)},
    "cnn": {
        "plain": Engine(),
        "graphed": Engine(graphed=True),
        "channels last": Engine(channels_last=True),
        "channels last, graphed": Engine(channels_last=True, graphed=True),
    },
}

Seconds = dict[str, dict[int, list[float]]]  # "engine, precision" -> batch size -> seconds per step, one per round


def _pictures(shape: tuple[int, ...]) -> dict[str, Any]:
    """Training and validation data of random pictures, and what both tasks have in common."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(EXAMPLES, *shape, generator=generator)
    y = torch.randint(10, (EXAMPLES,), generator=generator)
    return {"train": (x, y), "valid": (x[:1024], y[:1024]), "loss": F.cross_entropy, "batch_size": 64}


def mlp() -> Task:
    """`fashion-mnist-mlp` on random pictures."""
    return Task(
        name="mlp",
        model=fashion_mnist_mlp.make_model,
        optimizer=lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr),
        lr=0.05,
        **_pictures((28, 28)),
    )


def cnn() -> Task:
    """`fashion-mnist-cnn` on random pictures."""
    return Task(
        name="cnn",
        model=fashion_mnist_cnn.make_model,
        optimizer=lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9),
        lr=0.01,
        **_pictures((1, 28, 28)),
    )


def wide_mlp() -> Task:
    """The wide MLP of `memory.py` with more examples than fit into 139 GiB."""
    return wide(1 << 20)


# --- baseline ---


def free_bytes() -> int:
    """Free device memory as a fresh process sees it, its own context included."""
    program = "import torch; print(torch.cuda.mem_get_info()[0])"
    return int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)


def baseline(wrong: list[str]) -> dict[str, Any]:
    """Free memory around a probe that asks for more than the device has."""
    reference = f"{__file__}:wide_mlp"
    task = load_task(reference)
    conditions = set_up(1, CUDA, task.precision)
    everything = torch.cuda.mem_get_info()[1]
    prober = Prober(TaskReference.here(reference, check_task(task).fingerprint), conditions, everything)
    before = free_bytes()
    probe = prober.probe(task.train_size)
    after = free_bytes()
    print(f"free before {before / MIB:,.0f} MiB, probe of {task.train_size:,}: {probe.outcome} ({probe.reason})")
    print(f"free after  {after / MIB:,.0f} MiB", flush=True)
    if probe.outcome != "out_of_memory":
        wrong.append(f"expected a probe of {task.train_size:,} to run out of memory, got {probe.outcome}")
    if before - after > LEFT_BEHIND:
        wrong.append(f"{(before - after) / MIB:,.0f} MiB are missing after a probe that ran out of memory")
    return {"free_before": before, "free_after": after, "probe": to_plain(probe)}


# --- largest ---


def largest(wrong: list[str]) -> dict[str, Any]:
    """The wide MLP below the default limit, and the CNN through `profile`."""
    found = largest_micro_batch(f"{__file__}:wide_mlp", batch_size=wide_mlp().train_size)
    tell("wide MLP", found.memory, wrong)
    with tempfile.TemporaryDirectory() as folder:
        result = profile(f"{__file__}:cnn", memory_limit=PROFILE_LIMIT, store=Path(folder) / "gpu.db", draw=False)
    if result.memory is None:
        wrong.append("CNN: no memory was measured")
    else:
        tell("CNN, 2 GiB", result.memory, wrong)
    for row in result.rows:
        print(f"CNN  batch {row.micro_batch_size:6,d}: {row.examples_per_second.estimate or 0:14,.0f} examples/s")
    print(f"CNN  knee: {result.knee.estimate}, {result.knee.interval}", flush=True)
    return {"wide_mlp": to_plain(found), "cnn_profile": to_plain(result)}


def tell(name: str, memory: MemoryProfile, wrong: list[str]) -> None:
    """Print a ceiling; a target is missed where nothing that was run fits."""
    sizes = ", ".join(f"{p.micro_batch_size:,} {p.outcome}" for p in memory.probes)
    limit = f"{memory.limit_bytes / GIB:.1f} GiB ({memory.limit_is})"
    print(f"{name}: largest {memory.largest_micro_batch_size} below {limit}")
    print(f"{name}: {sizes}; {memory.reason}", flush=True)
    run = {p.micro_batch_size for p in memory.probes if p.fits}
    if memory.largest_micro_batch_size not in run:
        wrong.append(f"{name}: no size that was run fits: {memory.reason}")


# --- steps ---


class Timed:
    """One engine at one batch size, with a model, an optimiser and a step of its own (a graph is of one size)."""

    def __init__(self, task: Task, source: Source, batch_size: int, precision: str, engine: Engine) -> None:
        seed_everything(0)
        model = make_model(task, CUDA, engine)
        optimizer = task.optimizer(model, SLOWED * task.lr)
        self.step = make_step(task, model, optimizer, precision=precision, engine=engine, batch_size=batch_size)
        self.batches = endless(source, batch_size)
        self.window(WARM_UP)
        self.steps = max(1, round(WINDOW_SECONDS / self.window(WARM_UP)))

    def window(self, steps: int = 0) -> float:
        """Seconds per step over `steps` steps, data included; none given: as many as fill a window."""
        steps = steps or self.steps
        start = now(CUDA)
        for _ in range(steps):
            self.step(next(self.batches))
        return (now(CUDA) - start) / steps

    def not_replayed(self) -> str:
        """Why the steps of a graphed engine were not replayed; empty where they were, or should not be."""
        if not isinstance(self.step, GraphedStep):
            return ""
        return self.step.reason or ("" if self.step.replays else "no step was replayed")


def step_seconds(task: Task, wrong: list[str]) -> Seconds:
    """All engines at both precisions and all sizes, interleaved in a random order each round."""
    set_up(1, CUDA, task.precision)
    source = make_source(task, 0, CUDA)
    engines = ENGINES[task.name]
    kinds = [(f"{name}, {p}", size) for name in engines for p in ("fp32", "bf16") for size in SIZES]
    timed = {}
    for name, size in kinds:
        engine, precision = name.rsplit(", ", 1)
        timed[name, size] = Timed(task, source, size, precision, engines[engine])
    seconds: Seconds = {name: {size: [] for size in SIZES} for name, _ in kinds}
    for number in range(ROUNDS):
        for name, size in random.Random(number).sample(kinds, len(kinds)):
            seconds[name][size].append(timed[name, size].window())
    reasons = {f"{task.name}, {name}, batch {size}": one.not_replayed() for (name, size), one in timed.items()}
    wrong += [f"{name}: {reason}" for name, reason in reasons.items() if reason]
    return seconds


def step_ratios(seconds: Seconds) -> dict[str, Ratio]:
    """Plain over every other engine of the same precision, and fp32 over bf16 of the same engine."""
    found: dict[str, Ratio] = {}
    for name in seconds:
        engine, precision = name.rsplit(", ", 1)
        for size in SIZES:
            if engine != "plain":
                above = seconds[f"plain, {precision}"][size]
                found[f"plain / {engine}, {precision}, batch {size}"] = ratio(above, seconds[name][size])
            if precision == "bf16":
                above = seconds[f"{engine}, fp32"][size]
                found[f"fp32 / bf16, {engine}, batch {size}"] = ratio(above, seconds[name][size])
    return found


def steps(wrong: list[str]) -> dict[str, Any]:
    """Seconds and ratios of both tasks."""
    result = {}
    for task in (mlp(), cnn()):
        seconds = step_seconds(task, wrong)
        ratios = step_ratios(seconds)
        for name, by_size in seconds.items():
            shown_sizes = "   ".join(f"batch {b}: {1e6 * statistics.median(s):8,.1f} us" for b, s in by_size.items())
            print(f"{task.name}  {name:28} {shown_sizes}", flush=True)
        for name, value in ratios.items():
            print(f"{task.name}  {name:52} {shown(value)}", flush=True)
        replayed = ratios["plain / graphed, fp32, batch 32"]
        if replayed[2] <= 1.0:
            wrong.append(f"{task.name} at batch 32, plain / graphed: {shown(replayed)}, target above 1")
        result[task.name] = {"seconds_per_step": seconds, "ratios": ratios}
    return result


SECTIONS = {
    "baseline": baseline,
    "largest": largest,
    "steps": steps,
}  # steps last: they leave a context in this process


def main() -> None:
    """Measure, print, and with --check fail where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="exit 1 where a target in the header is missed")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/gpu.json")
    parser.add_argument("--only", choices=list(SECTIONS), help="one part; nothing is saved")
    arguments = parser.parse_args()
    if arguments.only and arguments.save:
        parser.error("expected --save without --only: the result file holds all parts, of one run")
    if not torch.cuda.is_available():
        sys.exit("expected a CUDA device, found none: run this where torch.cuda.is_available()")
    where = environment() | {"cuda": torch.version.cuda}
    print("  ".join(f"{k}: {v}" for k, v in where.items()), flush=True)
    wrong: list[str] = []
    chosen = [arguments.only] if arguments.only else list(SECTIONS)
    result = {name: SECTIONS[name](wrong) for name in chosen}
    if arguments.save:
        print(save("gpu", {"environment": where, **result}))
    for text in wrong:
        print(f"MISSED  {text}")
    sys.exit(1 if wrong and arguments.check else 0)


if __name__ == "__main__":
    main()
