"""What do others' per-example norms cost? BackPACK and gns-pytorch at every step, over the same loop without them.

Run by `noise.py --peers` under an environment of their own. Prints one line of JSON:
task -> batch size -> peer -> (median, low, high) of the paired ratios.

    BackPACK       BatchL2Grad: per-example squared norms of every parameter, as an extension of the backward pass
    gns-pytorch    compute_gns as its README has it: a share of 1 % of the parameters and 25 % of the batch
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
from collections.abc import Callable

import torch
from backpack import backpack, extend
from backpack.extensions import BatchL2Grad
from gns_pytorch import compute_gns

from batchscope.task import Task, load_task
from batchscope.training.device import keep_freed_memory
from ratios import ratio

WINDOW = 0.25
TASKS = ("fashion-mnist-mlp", "fashion-mnist-cnn")
SIZES = (32, 256, 2048)
GNS_MOST = 256  # compute_gns makes a backward pass for every example that it takes


def loop_of(task: Task, size: int, peer: str) -> Callable[[], None]:
    """The hand-written step, with a peer's norms in it."""
    torch.manual_seed(0)
    extended = peer == "BackPACK"
    model = extend(task.model()) if extended else task.model()
    loss_function = extend(torch.nn.CrossEntropyLoss()) if extended else torch.nn.CrossEntropyLoss()
    each = torch.nn.CrossEntropyLoss(reduction="none")
    optimizer = task.optimizer(model, task.lr / 10)
    generator = torch.Generator().manual_seed(1)
    x, y = task.train

    def step() -> None:
        chosen = torch.randint(len(x), (size,), generator=generator)
        optimizer.zero_grad()
        if extended:
            loss = loss_function(model(x[chosen]), y[chosen])
            with backpack(BatchL2Grad()):
                loss.backward()
            sum(float(p.batch_l2.sum()) for p in model.parameters())
        elif peer == "gns-pytorch":
            losses = each(model(x[chosen]), y[chosen])
            compute_gns(losses, model)
            losses.mean().backward()
        else:
            loss_function(model(x[chosen]), y[chosen]).backward()
        optimizer.step()

    return step


def timed(step: Callable[[], None], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - start) / count


def main() -> None:
    """All tasks, batch sizes and peers, interleaved."""
    torch.set_num_threads(1)
    keep_freed_memory()
    repeats, found = int(sys.argv[1]), {}
    for name in TASKS:
        task = load_task(name)
        for size in SIZES:
            names = ["plain", "BackPACK", *(["gns-pytorch"] if size <= GNS_MOST else [])]
            loops = {peer: loop_of(task, size, peer) for peer in names}
            for step in loops.values():
                timed(step, 3)
            count = max(2, math.ceil(WINDOW / timed(loops["plain"], 3)))
            seconds: dict[str, list[float]] = {peer: [] for peer in loops}
            for repeat in range(repeats):
                for peer in random.Random(repeat).sample(names, len(names)):
                    seconds[peer].append(timed(loops[peer], count if peer != "gns-pytorch" else max(2, count // 20)))
            ratios = {peer: ratio(seconds[peer], seconds["plain"]) for peer in names[1:]}
            found.setdefault(name, {})[size] = ratios
    print(json.dumps(found))


if __name__ == "__main__":
    main()
