"""Is our training loop as fast as a loop written by hand, and faster than a framework's?

Targets (checked with --check; ratios of medians of interleaved repeats, one thread, Fashion-MNIST MLP, no evaluation):
    ours / hand-written        at most 1.05 at batch 32, at most 1.02 at batch 2048
    Lightning / ours           at least 2 at batch 32
    default allocator / ours   above 1.0 at batch 2048 on a two-layer CNN (glibc gives large blocks back at every step)

A target counts as met where the interval of the paired median ratio reaches it (design, section 5, rule 10).
Ours is `batchscope.training.loop.train` itself, timed between its first and its last evaluation, on a validation
set of eight examples. The hand-written loop is the one below. Lightning runs with `barebones=True`, its fastest mode.

    python benchmarks/loop.py [--check] [--save] [--repeats 15]
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import logging
import random
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from batchscope.records import Arm, StopRule, TrialSpec
from batchscope.task import Task, load_task
from batchscope.training.device import keep_freed_memory
from batchscope.training.loop import Evaluator, train
from environment import environment, save

CPU = torch.device("cpu")
STEPS = {32: 800, 256: 190, 2048: 24}
TARGETS = {("hand", 32): 1.05, ("hand", 2048): 1.02, ("lightning", 32): 2.0}


def by_hand(task: Task, batch_size: int, steps: int) -> float:
    """What a careful user writes for data in memory; seconds per step."""
    x, y = task.train
    model = task.model()
    optimizer = task.optimizer(model, task.lr)
    model.train()
    done, start = 0, time.perf_counter()
    while done < steps:
        order = torch.randperm(len(x))
        for indices in order.split(batch_size):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[indices]), y[indices])
            loss.backward()
            optimizer.step()
            done += 1
            if done == steps:
                break
    return (time.perf_counter() - start) / steps


class Ours:
    """Our loop on the same work."""

    def __init__(self, task: Task) -> None:
        x, y = task.valid
        self.task = dataclasses.replace(task, valid=(x[:8], y[:8]), test=None)
        self.evaluator = Evaluator(self.task, CPU)

    def __call__(self, task: Task, batch_size: int, steps: int) -> float:
        """Seconds per step between the evaluation at step 0 and the one at the end."""
        budget = batch_size * steps
        times: list[tuple[int, float]] = []
        spec = TrialSpec(Arm(batch_size, task.lr), 0, StopRule(budget, 10 * budget))
        train(
            self.task,
            spec,
            device=CPU,
            evaluator=self.evaluator,
            on_evaluation=lambda line: times.append((line.step, time.perf_counter())),
        )
        return (times[-1][1] - times[0][1]) / times[-1][0]


def with_lightning(task: Task, batch_size: int, steps: int) -> float:
    """Lightning's Trainer on a DataLoader of the same tensors; seconds per step inside the training epoch."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.times = task.model(), [0.0, 0.0]

        def training_step(self, batch, _):
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self):
            return task.optimizer(self.model, task.lr)

        def on_train_epoch_start(self) -> None:
            self.times[0] = time.perf_counter()

        def on_train_epoch_end(self) -> None:
            self.times[1] = time.perf_counter()

    module = Module()
    data = torch.utils.data.TensorDataset(*task.train)
    loader = torch.utils.data.DataLoader(data, batch_size=batch_size, shuffle=True)
    trainer = lightning.Trainer(max_epochs=1, limit_train_batches=steps, barebones=True, accelerator="cpu")
    trainer.fit(module, loader)
    return (module.times[1] - module.times[0]) / steps


def compare(task: Task, repeats: int, lightning_too: bool) -> dict[str, dict[str, list[float]]]:
    """Seconds per step of every loop at every batch size, interleaved: {batch size: {loop: [seconds]}}."""
    loops: dict[str, Callable[[Task, int, int], float]] = {"ours": Ours(task), "hand": by_hand}
    if lightning_too:
        loops["lightning"] = with_lightning
    seconds: dict[str, dict[str, list[float]]] = {str(b): {name: [] for name in loops} for b in STEPS}
    for repeat in range(-1, repeats):  # the first is a warm-up
        for batch_size, steps in STEPS.items():
            for name in random.Random(repeat).sample(sorted(loops), len(loops)):
                if name == "lightning" and (batch_size != 32 or repeat >= 5):
                    continue
                spent = loops[name](task, batch_size, steps)
                if repeat >= 0:
                    seconds[str(batch_size)][name].append(spent)
    return seconds


CNN_STEPS = 4


def cnn_step_seconds(kept: bool) -> float:
    """Seconds per step of a two-layer CNN at batch 2048 in this process, with the allocator kept or left alone."""
    if kept:
        keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    flat = nn.Sequential(nn.MaxPool2d(4), nn.Flatten())
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), flat, nn.Linear(784, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, y = torch.randn(2048, 1, 28, 28), torch.randint(10, (2048,))
    times = []
    for _ in range(CNN_STEPS + 1):
        start = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def allocator(repeats: int) -> dict[str, list[float]]:
    """The CNN's step in fresh processes, alternating."""
    seconds: dict[str, list[float]] = {"kept": [], "default": []}
    for _ in range(repeats):
        for name in seconds:
            command = [sys.executable, __file__, "--cnn", name]
            seconds[name].append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    return seconds


def ratio(above: list[float], below: list[float]) -> tuple[float, float, float]:
    """Median of paired ratios with the sign test's 95 % interval (order statistics; Conover 1999)."""
    pairs = sorted(a / b for a, b in zip(above, below, strict=False))
    n = len(pairs)
    skip = max(0, int((n - 1.96 * n**0.5) / 2))
    return statistics.median(pairs), pairs[skip], pairs[n - 1 - skip]


def main() -> None:
    """Measure, print, and with --check fail where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--cnn", choices=["kept", "default"])
    arguments = parser.parse_args()
    if arguments.cnn:
        print(cnn_step_seconds(arguments.cnn == "kept"))
        return

    warnings.filterwarnings("ignore", module="lightning")  # advice on loader workers and saving
    lightning_too = importlib.util.find_spec("lightning") is not None
    if lightning_too:
        importlib.import_module("lightning.pytorch")  # sets up its loggers, which then can be quietened
        for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
            logging.getLogger(name).setLevel(logging.ERROR)
    else:
        print("Lightning is not installed: left out (pip install 'batchscope[bench]')")
    torch.set_num_threads(1)
    keep_freed_memory()
    where = environment()
    print("  ".join(f"{k}: {v}" for k, v in where.items()))
    seconds = compare(load_task("fashion-mnist-mlp"), arguments.repeats, lightning_too)
    ratios: dict[str, tuple[float, float, float]] = {}
    missed = []
    for batch_size, loops in seconds.items():
        ours = statistics.median(loops["ours"])
        ratios[f"ours / hand-written at {batch_size}"] = ratio(loops["ours"], loops["hand"])
        if loops.get("lightning"):
            ratios[f"Lightning / ours at {batch_size}"] = ratio(loops["lightning"], loops["ours"])
        print(f"batch {batch_size}: ours {1e6 * ours:,.0f} us a step")
    freed = allocator(max(3, arguments.repeats // 3))
    ratios["CNN at 2048, default allocator / kept"] = ratio(freed["default"], freed["kept"])
    for name, (middle, low, high) in ratios.items():
        print(f"{name}: {middle:.3f} [{low:.3f} - {high:.3f}]")
    for (other, batch_size), target in TARGETS.items():
        name = f"ours / hand-written at {batch_size}" if other == "hand" else f"Lightning / ours at {batch_size}"
        if name in ratios:
            _, low, high = ratios[name]
            if (low > target) if other == "hand" else (high < target):
                missed.append(f"{name}: {ratios[name][0]:.3f}, target {target}")
    if sys.platform.startswith("linux") and ratios["CNN at 2048, default allocator / kept"][0] <= 1.0:
        missed.append("the allocator setting does not help here")
    if arguments.save:
        print(save("loop", {"environment": where, "ratios": ratios, "seconds_per_step": seconds, "allocator": freed}))
    for text in missed:
        print(f"MISSED  {text}")
    sys.exit(1 if missed and arguments.check else 0)


if __name__ == "__main__":
    main()
