"""Does training on two processes cost more than bare DistributedDataParallel, and less than TensorFlow's mirrors?

Two processes of one thread, each on a core of its own (gloo), on the Fashion-MNIST MLP and CNN at a batch of 32, 256
and 2048 examples in all:

    ours           `make_shared_step` on what the training loop's source gives each rank
    bare           what an experienced user writes by hand: DDP(model), data in memory, indices of a permutation
    bare, default  the same without `keep_freed_memory`, in a pair of processes of its own
    TensorFlow     MirroredStrategy on two logical CPU devices, in one process on the same two cores
                   (`--peers PYTHON`, an environment of its own: `make bench-peers`)

Target (checked with --check), everywhere:   ours / the faster of the two bare ones at most 1.05
It counts as met where the interval of the paired median ratio reaches it (design, section 5, rule 10).

One window of steps after the other, A B C C B A in a round, the order drawn anew for every round; only one loop runs
at a time, the others' processes sleep. A window's time is that of its slower rank. Processes are started anew
`FRESH` times, as where their memory happens to lie is part of the spread. Before anything is timed, ours and bare take
the same steps from the same weights and must agree: the work is the same.

    python benchmarks/parallel.py [--check] [--save] [--peers PYTHON]      about 4 minutes (with a peer 6), alone
    python benchmarks/parallel.py --quick                                  does it run? a few steps of everything
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from batchscope.sweep.ranks import CORES, take_place
from batchscope.task import Task, load_task
from batchscope.training.batches import make_source
from batchscope.training.device import keep_freed_memory
from batchscope.training.distributed import Replicas, listening, met, part_ways
from batchscope.training.engine import PLAIN
from batchscope.training.seeding import permutation, seed_everything
from batchscope.training.step import make_shared_model, make_shared_step
from environment import environment, save
from ratios import Ratio, ratio, shown

TASKS, SIZES = ("fashion-mnist-mlp", "fashion-mnist-cnn"), (32, 256, 2048)
OURS, BARE, DEFAULT, PEER = "ours", "bare", "bare, default", "TensorFlow"
RANKS, HOST, SEED = 2, "127.0.0.1", 0
MOST = 1.05
WINDOW = 0.25  # seconds of steps that a loop is timed for, at least two steps
FRESH, ROUNDS = 3, 15  # times that the processes are started; rounds in all
CHECKED, CLOSE = 8, 1e-3  # steps after which ours and bare must agree, to this share of the largest weight's size

Case = tuple[str, int]  # task, batch size
Seconds = dict[str, list[float]]  # loop -> seconds per step, one per round


# --- on a rank ---


@dataclass
class Loop:
    """A model and its training: whoever asks for the next item gets one step done."""

    model: nn.Module
    steps: Iterator[None]


def ours(task: Task, batch_size: int, replicas: Replicas) -> Loop:
    """What `training/loop.py` does between two evaluations."""
    seed_everything(SEED)
    model = make_shared_model(task, replicas.device, PLAIN, replicas)
    optimizer = task.optimizer(model, task.lr)
    source = make_source(task, SEED, replicas.device, part=replicas.part)
    step = make_shared_step(task, model, optimizer, replicas)

    def steps() -> Iterator[None]:
        for epoch in itertools.count():
            for k, part in enumerate(source.epoch(epoch, batch_size)):
                yield step(part, min(batch_size, source.size - k * batch_size))

    return Loop(model, steps())


def bare(task: Task, batch_size: int, replicas: Replicas) -> Loop:
    """By hand. Takes the same permutation, so that the weights can be compared."""
    seed_everything(SEED)
    model = task.model()
    replica = DistributedDataParallel(model)
    optimizer = task.optimizer(model, task.lr)
    x, y = task.train
    own = batch_size // replicas.size

    def steps() -> Iterator[None]:
        for epoch in itertools.count():
            order = permutation(SEED, epoch, len(x))
            for start in range(replicas.rank * own, len(x), batch_size):
                chosen = order[start : start + own]
                optimizer.zero_grad()
                loss = task.loss_of(replica(x[chosen]), y[chosen])
                loss.backward()
                optimizer.step()
                yield

    return Loop(model, steps())


LOOPS: dict[str, Callable[[Task, int, Replicas], Loop]] = {OURS: ours, BARE: bare, DEFAULT: bare}


def window(loop: Loop, steps: int) -> float:
    """Seconds per step on this rank; both begin together."""
    dist.barrier()
    start = time.perf_counter()
    for _ in range(steps):
        next(loop.steps)
    return (time.perf_counter() - start) / steps


def apart(one: Loop, other: Loop) -> float:
    """The largest difference of two models' weights, over the largest weight."""
    a, b = (nn.utils.parameters_to_vector(loop.model.parameters()).detach() for loop in (one, other))
    return float((a - b).abs().max() / a.abs().max())


def serve(rank: int, line: Connection, kept: bool) -> None:
    """Meet the other rank, then time what is asked for until None is: (task, batch size, loop, steps) -> seconds."""
    torch.set_num_threads(1)
    if kept:
        keep_freed_memory()
    device = take_place(rank)
    store = listening() if rank == 0 else None
    if store is not None:
        line.send(store.port)
    replicas = met(rank, RANKS, device, store or (HOST, line.recv()))
    task_of = functools.cache(load_task)
    loop_of = functools.cache(lambda name, size, loop: LOOPS[loop](task_of(name), size, replicas))
    while (asked := line.recv()) is not None:
        name, size, loop, steps = asked
        if steps > 0:
            line.send(window(loop_of(name, size, loop), steps))
        else:
            line.send(apart(loop_of(name, size, OURS), loop_of(name, size, BARE)))
    part_ways()


# --- those that are asked ---


class Pair:
    """Two ranks."""

    versions: ClassVar[dict[str, str]] = {}  # of torch: `environment` has it

    def __init__(self, kept: bool) -> None:
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(RANKS)]
        self.lines = [ours for ours, _ in pipes]
        self.processes = [
            context.Process(target=serve, args=(r, theirs, kept), daemon=True) for r, (_, theirs) in enumerate(pipes)
        ]
        for process, (_, theirs) in zip(self.processes, pipes, strict=True):
            process.start()
            theirs.close()  # else a rank that dies is waited for
        port = self.lines[0].recv()
        for line in self.lines[1:]:
            line.send(port)

    def ask(self, case: Case, loop: str, steps: int) -> float:
        """The larger of the two ranks' answers."""
        for line in self.lines:
            line.send((*case, loop, steps))
        return max(line.recv() for line in self.lines)

    def close(self) -> None:
        """End both."""
        for line in self.lines:
            line.send(None)
        for process in self.processes:
            process.join(30)
            process.kill()


class Peer:
    """`parallel_tensorflow.py` under another Python."""

    def __init__(self, python: str, folder: Path) -> None:
        cores = ",".join(map(str, CORES[:RANKS]))
        command = [python, str(Path(__file__).parent / "parallel_tensorflow.py"), str(folder), cores]
        surroundings = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=surroundings
        )
        self.versions: dict[str, str] = self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        told = self.process.stdout.readline()
        if not told:
            raise RuntimeError(f"expected an answer of TensorFlow, it ended with {self.process.wait()}")
        return json.loads(told)

    def _told(self, *asked: Any) -> Any:
        assert self.process.stdin is not None
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        return self._answer()

    def ask(self, case: Case, loop: str, steps: int) -> float:
        """Seconds per step; for no step at all nothing but a check that the model is as large as ours."""
        if steps > 0:
            return self._told(*case, steps)
        found, expected = self._told(*case, 0), sum(p.numel() for p in load_task(case[0]).model().parameters())
        if found != expected:
            raise RuntimeError(f"expected a model of {expected} weights for {case[0]}, TensorFlow's has {found}")
        return 0.0

    def close(self) -> None:
        """End it: left to itself, it waits for pipelines that have no end."""
        self.process.kill()
        self.process.wait()


Asked = dict[str, Pair | Peer]  # loop -> where it runs


def opened(python: str | None, folder: Path) -> Asked:
    """Fresh processes for every loop; ours and bare share a pair."""
    kept = Pair(kept=True)
    asked: Asked = {OURS: kept, BARE: kept, DEFAULT: Pair(kept=False)}
    return asked | ({PEER: Peer(python, folder)} if python else {})


def hand_over(folder: Path) -> None:
    """The training set as arrays, for those without torch."""
    images, labels = load_task(TASKS[0]).train
    np.save(folder / "images.npy", images.numpy())
    np.save(folder / "labels.npy", labels.numpy())


# --- the measurement ---


def prepare(asked: Asked, case: Case, length: float) -> dict[str, int]:
    """Check that the work is the same, warm up, and say how many steps of each loop make a window."""
    for loop, there in asked.items():
        there.ask(case, loop, CHECKED)
    difference = asked[OURS].ask(case, OURS, 0)
    if not difference < CLOSE:
        raise RuntimeError(f"expected the same weights from ours and bare on {case}, got {difference:.2g} apart")
    if PEER in asked:
        asked[PEER].ask(case, PEER, 0)
    per_step = {loop: there.ask(case, loop, CHECKED) for loop, there in asked.items()}
    counts = dict.fromkeys((OURS, BARE, DEFAULT), max(2, math.ceil(length / per_step[BARE])))
    return counts | {loop: max(2, math.ceil(length / s)) for loop, s in per_step.items() if loop not in counts}


def measure(
    python: str | None, cases: list[Case], fresh: int, rounds: int, length: float
) -> tuple[dict[Case, Seconds], dict[str, str]]:
    """(seconds per step of every loop in every case, a value a round; the peer's versions)."""
    versions: dict[str, str] = {}
    seconds: dict[Case, Seconds] = {case: {} for case in cases}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hand_over(folder)
        for start in range(fresh):
            asked = opened(python, folder)
            counts = {case: prepare(asked, case, length) for case in cases}
            for turn, case in itertools.product(range(start, rounds, fresh), cases):
                order = random.Random(f"{turn} {case}").sample(sorted(asked), len(asked))
                taken = [(loop, asked[loop].ask(case, loop, counts[case][loop])) for loop in order + order[::-1]]
                for loop in order:
                    seconds[case].setdefault(loop, []).append(
                        statistics.fmean(s for which, s in taken if which == loop)
                    )
            for there in set(asked.values()):
                there.close()
                versions |= there.versions
    return seconds, versions


def compared(seconds: Seconds) -> dict[str, Ratio]:
    """The ratios of one case, "above / below"."""
    pairs = [(OURS, BARE), (OURS, DEFAULT), (DEFAULT, BARE), *([(PEER, OURS)] if PEER in seconds else [])]
    return {f"{above} / {below}": ratio(seconds[above], seconds[below]) for above, below in pairs}


def faster(seconds: Seconds) -> str:
    """Which of the two bare loops is."""
    return min((BARE, DEFAULT), key=lambda loop: statistics.median(seconds[loop]))


def rates(size: int, seconds: Seconds) -> dict[str, float]:
    """Examples per second, by loop."""
    return {loop: size / statistics.median(s) for loop, s in seconds.items()}


def print_table(seconds: dict[Case, Seconds]) -> None:
    """Examples per second, and ratios of seconds; * marks the bare loop that ours is held against."""
    first = next(iter(seconds.values()))
    loops, heads = [loop for loop in (OURS, BARE, DEFAULT, PEER) if loop in first], list(compared(first))
    print(f"\n{'examples per second':23} " + f"{'':{15 * len(loops)}}  seconds over seconds")
    print(f"{'task':17} {'batch':>5} " + _cells(loops, 14) + "  " + _cells(heads, 21))
    for (name, size), found in seconds.items():
        by_loop, marked = rates(size, found), f"{OURS} / {faster(found)}"
        ratios = [shown(value) + ("*" if head == marked else " ") for head, value in compared(found).items()]
        print(
            f"{name:17} {size:5} " + _cells([f"{by_loop[loop]:,.0f}" for loop in loops], 14) + "  " + _cells(ratios, 21)
        )


def _cells(texts: list[str], width: int) -> str:
    return " ".join(f"{text:>{width}}" for text in texts)


def missed(seconds: dict[Case, Seconds]) -> list[str]:
    """Where the target of the header is."""
    wrong = []
    for (name, size), found in seconds.items():
        got = ratio(found[OURS], found[faster(found)])
        if got[1] > MOST:
            wrong.append(f"{name} at batch {size}, ours / {faster(found)}: {shown(got)}, target at most {MOST}")
    return wrong


def stored(seconds: dict[Case, Seconds]) -> dict[str, Any]:
    """Everything by task and batch size, as JSON wants it."""
    found: dict[str, Any] = {"examples_per_second": {}, "ratios": {}, "held_against": {}, "seconds_per_step": {}}
    for (name, size), by_loop in seconds.items():
        values = (rates(size, by_loop), compared(by_loop), faster(by_loop), by_loop)
        for part, value in zip(found.values(), values, strict=True):
            part.setdefault(name, {})[size] = value
    return found


def main() -> None:
    """Measure, print, and with --check fail where the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="exit 1 where the target in the header is missed")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/parallel.json")
    parser.add_argument("--quick", action="store_true", help="a few steps, once: nothing is checked or saved")
    parser.add_argument("--peers", metavar="PYTHON", help="the Python of an environment with TensorFlow")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    if arguments.quick and (arguments.check or arguments.save):
        parser.error("expected --quick alone, got it with --check or --save: a few steps prove nothing")
    if torch.cuda.is_available():
        sys.exit("expected a machine without a CUDA device, got one: hide it with CUDA_VISIBLE_DEVICES=''")
    if len(CORES) < RANKS:
        sys.exit(f"expected {RANKS} cores that this process may pin others to, got {len(CORES)}")

    torch.set_num_threads(1)
    if sys.platform.startswith("linux"):
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # all traffic stays on this machine
    where = environment() | {"processes": RANKS}
    print("  ".join(f"{k}: {v}" for k, v in where.items()), flush=True)
    fresh, rounds, length = (1, 1, 0.0) if arguments.quick else (FRESH, arguments.rounds, WINDOW)
    seconds, versions = measure(arguments.peers, list(itertools.product(TASKS, SIZES)), fresh, rounds, length)
    print_table(seconds)
    if arguments.save:
        print(save("parallel", {"environment": where | versions, **stored(seconds)}))
    wrong = [] if arguments.quick else missed(seconds)
    for text in wrong:
        print(f"MISSED  {text}")
    sys.exit(1 if wrong and arguments.check else 0)


if __name__ == "__main__":
    main()
