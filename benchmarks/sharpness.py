"""How fast are the Hessian's largest eigenvalue and trace, beside PyHessian at the same accuracy?

The network of `fashion-mnist-cnn` after two epochs, 10,000 images, eval mode, one set of weights. PyHessian runs with
its defaults (power iteration to a relative change of 1e-3; Hutchinson until the running mean moves by less than 1e-3).

    eigenvalue   truth: Lanczos to a residual of 1e-6. Ours stops at the residual that its tolerance asks for; both
                 errors are printed, and ours must be no larger.
    trace        PyHessian's standard error is sd / sqrt(probes) of the samples that it returns; ours goes on until its
                 own is no larger.

Interleaved repeats in one process, medians. Target: at least 2x faster at both.

    pip install --no-deps --target benchmarks/.work/peers pyhessian
    python benchmarks/sharpness.py [--repeats 3] [--threads 1] [--save] [--check]
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import batchscope as bs
from batchscope.measure.full_loss import FullLoss
from batchscope.measure.hessian import eigenvalues, trace
from batchscope.training.batches import make_source
from batchscope.training.seeding import permutation, seed_everything
from batchscope.training.step import make_model, make_step
from environment import environment, save

PEERS = Path(__file__).parent / ".work" / "peers"
IMAGES, EPOCHS, TARGET = 10_000, 2, 2.0
PEER_CHUNK = 500  # PyHessian's loader: the faster of 256, 500 and 1,000 here
TRUTH = 1e-6
CPU = torch.device("cpu")


def main() -> None:
    """Train a little, then time both in turns."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", action="store_true", help="write the table to benchmarks/results/")
    parser.add_argument("--check", action="store_true", help="exit 1 where the target in the header is missed")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    where = environment()
    print("  ".join(f"{k}: {v}" for k, v in where.items()), flush=True)
    task = bs.load_task("fashion-mnist-cnn")
    model = trained(task)
    loss = FullLoss(task, model, task.train, CPU, examples=IMAGES)
    x = loss.point()
    truth = eigenvalues(loss, x, tolerance=TRUTH, most=200)[0].estimate
    assert truth is not None
    rows = [one_repeat(task, model, loss, x, truth, repeat) for repeat in range(arguments.repeats)]
    ratios = {name: statistics.median(r[f"{name}_ratio"] for r in rows) for name in ("eigenvalue", "trace")}
    print("  ".join(f"{name}: {ratio:.2f}x (target {TARGET:g}x)" for name, ratio in ratios.items()))
    if arguments.save:
        result = {"environment": where, "images": IMAGES, "truth": truth, "repeats": rows, "ratios": ratios}
        print(save("sharpness", result))
    worse = [r for r in rows if r["our_eigenvalue_error"] > r["their_eigenvalue_error"]]
    if arguments.check and (worse or min(ratios.values()) < TARGET):
        print(f"MISSED {min(ratios.values()):.2f} < {TARGET}, or a larger error in {len(worse)} repeats")
        sys.exit(1)


def trained(task: bs.Task) -> nn.Module:
    """At the task's own point."""
    seed_everything(0)
    model = make_model(task, CPU)
    step = make_step(task, model, task.optimizer(model, task.lr))
    source = make_source(task, 0, CPU)
    for batch in itertools.chain(*(source.epoch(epoch, task.batch_size) for epoch in range(EPOCHS))):
        step(batch)
    return model


def peer(task: bs.Task, model: nn.Module) -> Any:
    """PyHessian over the same images."""
    sys.path.append(str(PEERS))
    from pyhessian import hessian

    indices = permutation(0, -1, task.train_size)[:IMAGES]
    images, labels = (t[indices].split(PEER_CHUNK) for t in task.train)
    return hessian(model, task.loss, dataloader=list(zip(images, labels, strict=True)), cuda=False)


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, what it returned)."""
    start = time.perf_counter()
    found = function()
    return time.perf_counter() - start, found


def one_repeat(
    task: bs.Task, model: nn.Module, loss: FullLoss, x: torch.Tensor, truth: float, repeat: int
) -> dict[str, float]:
    """Theirs first: the standard error of their trace is what ours goes on to."""
    loss.move(x)
    found: dict[str, Any] = {}

    def theirs() -> None:
        torch.manual_seed(repeat)
        seconds, (values, _) = timed(lambda: peer(task, model).eigenvalues())
        found["their eigenvalue"] = seconds, values[0]
        seconds, samples = timed(lambda: peer(task, model).trace())
        found["their trace"] = seconds, np.array(samples)

    def ours() -> None:
        seconds, (largest, _) = timed(lambda: eigenvalues(loss, x, seed=repeat, both=False))
        found["our eigenvalue"] = seconds, largest.estimate
        aim = standard_error(found["their trace"][1])
        seconds, measured = timed(lambda: trace(loss, x, seed=repeat, relative_error=aim, most=4096))
        found["our trace"] = seconds, measured

    theirs()
    ours()
    samples, measured = found["their trace"][1], found["our trace"][1]
    row = {
        "their_eigenvalue_seconds": found["their eigenvalue"][0],
        "our_eigenvalue_seconds": found["our eigenvalue"][0],
        "their_eigenvalue_error": abs(found["their eigenvalue"][1] / truth - 1),
        "our_eigenvalue_error": abs(found["our eigenvalue"][1] / truth - 1),
        "their_trace_seconds": found["their trace"][0],
        "our_trace_seconds": found["our trace"][0],
        "their_trace": float(samples.mean()),
        "our_trace": measured.estimate,
        "their_trace_error": standard_error(samples),
        "our_trace_half_width": (measured.high - measured.estimate) / measured.estimate,
        "their_probes": len(samples),
    }
    row["eigenvalue_ratio"] = row["their_eigenvalue_seconds"] / row["our_eigenvalue_seconds"]
    row["trace_ratio"] = row["their_trace_seconds"] / row["our_trace_seconds"]
    print("  ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)
    return row


def standard_error(samples: np.ndarray) -> float:
    """Relative."""
    return float(samples.std(ddof=1) / math.sqrt(len(samples)) / abs(samples.mean()))


if __name__ == "__main__":
    main()
