"""What does watching the gradient noise cost, and what does it give for that, against the same loop unwatched?

The same hand-written loop on the Fashion-MNIST MLP and CNN and the character transformer at batch 32, 256 and 2048,
one thread, interleaved in one process; what is printed is seconds over those of the loop without a monitor.

    default     NoiseMonitor(model) as it comes: `every` as it chose it, timed over whole cycles of it. Target: 1.02
    examples    per-example norms at every step; target on the MLP: 1.25
    parts       the two halves of the batch, at every step
    micro 4     four accumulated micro-batches, at every step, over the same accumulation unwatched

A target is met where the interval of the paired median ratio reaches it (design, section 5, rule 10). Where a cycle of
the default takes longer than `LONGEST_CYCLE` it is not timed whole: (ratio at every step - 1) / every is given.

Precision: at fixed weights, from K measurements each, 1 / (half width of the log interval of B_simple)^2 / K per
measurement, over that of `examples`, and the same per unit of overhead.

Peers that look at gradients batch by batch need an environment of their own (`make bench-peers`; BackPACK asks for
torchvision): BackPACK's BatchL2Grad and gns-pytorch, at every step, over the same loop without them.

    python benchmarks/noise.py [--check] [--save] [--peers .venv-peers/bin/python] [--repeats 15]      some 20 minutes
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from batchscope.analysis.noise_scale import noise_scale
from batchscope.measure.monitor import NoiseMonitor
from batchscope.task import Task, load_task
from batchscope.training.device import keep_freed_memory
from environment import environment, save
from ratios import Ratio, ratio, shown

TASKS = ("fashion-mnist-mlp", "fashion-mnist-cnn", "stdlib-lm")
SIZES = (32, 256, 2048)
WINDOW = 0.1  # seconds of steps that a loop is timed for, at least one step
SLOW = 2.0  # seconds a step: then only `parts`, three times
LONGEST_CYCLE = 20.0  # seconds
LEAST_CYCLE, CYCLES_SECONDS, MOST_CYCLES = 0.05, 60.0, 300
PRECISION_SECONDS = 20.0  # spent on the precision of each source, at most
PRECISION_LEAST, PRECISION_MOST = 24, 400  # measurements
MICRO = 4
Step = Callable[[], None]
Found = dict[str, Ratio | int | float]


def loop_of(task: Task, size: int, micro: int = 1, **options: object) -> tuple[Step, NoiseMonitor | None]:
    """A hand-written training step on fresh random batches; with options, its monitor."""
    torch.manual_seed(0)
    model = task.model()
    optimizer = task.optimizer(model, task.lr / 10)  # stays near where it begins
    generator = torch.Generator().manual_seed(1)
    x, y = task.train
    monitor = NoiseMonitor(model, **options) if options else None  # ty: the options are the monitor's own

    def step() -> None:
        chosen = torch.randint(len(x), (size,), generator=generator)
        optimizer.zero_grad()
        for part in chosen.split(size // micro):
            loss = task.batch_loss(model, (x[part], y[part])) / micro
            loss.backward()
        if monitor is not None:
            monitor.step()
        optimizer.step()

    return step, monitor


def timed(step: Step, count: int) -> float:
    """Seconds per step over so many."""
    start = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - start) / count


def sources_of(task: Task) -> dict[str, dict[str, object]]:
    """Loops that measure at every step, by name."""
    loops: dict[str, dict[str, object]] = {"parts": {"source": "parts", "every": 1}}
    if task.name != "stdlib-lm":  # its position embedding is a parameter beside its layers
        loops = {"examples": {"source": "examples", "every": 1}, **loops}
    return loops


def interleaved(loops: dict[str, Step], count: int, repeats: int) -> dict[str, list[float]]:
    """Seconds per step over `count` steps of every loop, once a repeat, in an order that changes."""
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for repeat in range(repeats):
        for name in random.Random(repeat).sample(sorted(loops), len(loops)):
            seconds[name].append(timed(loops[name], count))
    return seconds


def compare(task: Task, size: int, repeats: int) -> Found:
    """Ratios over the unwatched loop; the default's own `every`."""
    plain, _ = loop_of(task, size)
    timed(plain, 2)
    one = timed(plain, 2)
    slow = one > SLOW
    made = {name: loop_of(task, size, **options) for name, options in sources_of(task).items()}
    loops = {"plain": plain, **{name: step for name, (step, _) in made.items()}}
    if not slow:
        made["micro 4"] = loop_of(task, size, MICRO, source="micro-batches", every=1)
        loops |= {"micro 4": made["micro 4"][0], "plain micro": loop_of(task, size, MICRO)[0]}
    for step in loops.values():
        timed(step, 8)  # past the monitors' warm-up
    times = interleaved(loops, max(1, math.ceil(WINDOW / one)), 3 if slow else 2 * repeats)
    ratios = {n: ratio(times[n], times["plain micro" if n == "micro 4" else "plain"]) for n in made}
    return {"seconds": statistics.median(times["plain"]), **ratios, **default(task, size, one, repeats)}


def default(task: Task, size: int, one: float, repeats: int) -> Found:
    """The monitor as it comes: the `every` that it chooses, and a loop with it over whole cycles, one measurement each.

    Cycles are short, so that both of a pair meet the same machine; there are as many as fit into `CYCLES_SECONDS`.
    """
    step, monitor = loop_of(task, size, overhead=0.02)
    assert monitor is not None
    while monitor.every is None:
        step()
    every = monitor.every
    found: Found = {"every": every, "overhead it reckons": monitor.report().overhead or 0.0}
    if one * every > LONGEST_CYCLE:
        return found
    loops = {"watched": loop_of(task, size, every=every)[0], "plain": loop_of(task, size)[0]}
    for loop in loops.values():
        timed(loop, 8 + every)
    cycles = every * max(1, math.ceil(LEAST_CYCLE / one / every))
    pairs = max(5, min(MOST_CYCLES, int(CYCLES_SECONDS / one / cycles / 2))) if repeats > 1 else 1
    times = interleaved(loops, cycles, pairs)
    return {**found, "default": ratio(times["watched"], times["plain"])}


def precision(task: Task, size: int, one: float) -> dict[str, float]:
    """1 / (half log width)^2 per measurement of each source, at weights that stay as they are."""
    found = {}
    for name, options in {**sources_of(task), "micro 4": {"source": "micro-batches", "every": 1}}.items():
        step, monitor = loop_of(task, size, MICRO if name == "micro 4" else 1, **options)
        assert monitor is not None
        frozen = [p.detach().clone() for p in monitor.model.parameters()]
        count = min(PRECISION_MOST, max(PRECISION_LEAST, int(PRECISION_SECONDS / one / 3)))
        for _ in range(count + 8):
            step()
            with torch.no_grad():
                for p, before in zip(monitor.model.parameters(), frozen, strict=True):
                    p.copy_(before)
        scale = noise_scale(monitor.report().measurements, data_size=len(task.train[0]))
        b = scale.b_simple
        if b.low and b.high:
            found[name] = 1 / (math.log(b.high / b.low) / 2) ** 2 / scale.measurements
    return found


def peers(python: str, repeats: int) -> dict[str, dict[str, dict[str, Ratio]]]:
    """What `noise_peers.py` measures under another Python."""
    here = Path(__file__).parent
    command = [python, str(here / "noise_peers.py"), str(repeats)]
    surroundings = {**os.environ, "PYTHONPATH": str(here.parent / "src")}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=surroundings)
    return json.loads(done.stdout.splitlines()[-1])


def missed(results: dict[str, dict[int, dict]]) -> list[str]:
    """The targets of the header that are missed."""
    wrong = []
    for name, by_size in results.items():
        for size, found in by_size.items():
            if "default" in found and found["default"][1] > 1.02:
                wrong.append(f"{name} at batch {size}, default: {shown(found['default'])}, target at most 1.02")
            if name == "fashion-mnist-mlp" and found["examples"][1] > 1.25:
                wrong.append(f"{name} at batch {size}, examples: {shown(found['examples'])}, target at most 1.25")
    return wrong


def line_of(found: dict, exact: dict[str, float]) -> str:
    """One task and batch size in words."""
    names = [n for n in ("default", "examples", "parts", "micro 4") if n in found]
    ratios = ", ".join(f"{n} {shown(found[n])}" for n in names)
    best = exact.get("examples") or exact.get("parts")
    worth = {n: (v / best, v / best / max(found[n][0] - 1, 1e-3)) for n, v in exact.items() if best}
    per = ", ".join(f"{n} {a:.2f} ({b:.1f} per unit of overhead)" for n, (a, b) in worth.items())
    return f"every {found['every']}, reckons {found['overhead it reckons']:.3f}; {ratios}; precision {per}"


def main() -> None:
    """Measure, print, and with --check fail where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="exit 1 where a target in the header is missed")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/noise.json")
    parser.add_argument("--peers", metavar="PYTHON", help="the Python of an environment with BackPACK and gns-pytorch")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    where = environment()
    print("  ".join(f"{k}: {v}" for k, v in where.items()), flush=True)
    results: dict[str, dict[int, dict]] = {}
    precise: dict[str, dict[int, dict[str, float]]] = {}
    for name in arguments.tasks.split(","):
        task = load_task(name)
        for size in map(int, arguments.sizes.split(",")):
            found = results.setdefault(name, {})[size] = compare(task, size, arguments.repeats)
            slow = found["seconds"] > SLOW / 4
            exact = precise.setdefault(name, {})[size] = {} if slow else precision(task, size, found["seconds"])
            print(f"{name:17} {size:5} {1e6 * found['seconds']:10,.0f} us  {line_of(found, exact)}", flush=True)
    beside = peers(arguments.peers, arguments.repeats) if arguments.peers else {}
    for task_name, by_size in beside.items():
        for size, by_peer in by_size.items():
            ratios = ", ".join(f"{peer} {shown(tuple(r))}" for peer, r in by_peer.items())
            print(f"{task_name:17} {size:>5}  {ratios}")
    if arguments.save:
        everything = {"ratios": results, "precision_per_measurement": precise, "peers": beside}
        print(save("noise", {"environment": where, **everything}))
    wrong = missed(results)
    for text in wrong:
        print(f"MISSED  {text}")
    sys.exit(1 if wrong and arguments.check else 0)


if __name__ == "__main__":
    main()
