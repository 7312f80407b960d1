"""Do large batches end in sharper minima, as Keskar et al. 2016 found? Their network F1 on Fashion-MNIST.

Adam at its default learning rate, batches of 256 (SB) and of a tenth of the training data (LB), each until the mean
training loss of an epoch has not fallen for PATIENCE epochs and LEAST_STEPS steps, or CAP. At the weights where they
end: sharpness in the full space and in a random subspace (10 iterations of L-BFGS-B over EXAMPLES of the training data;
the paper takes all), on a subset also to convergence, test accuracy, distance from the initial weights; and what the
objections ask for: largest eigenvalue, adaptive sharpness, training loss.

The ratios are printed beside the paper's MNIST row. Reported as found. Runs that have ended are kept in .work.

    python benchmarks/keskar.py [--seeds 3] [--threads 1] [--reverse] [--save]
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

import keskar_task
from batchscope.measure.full_loss import FullLoss
from batchscope.measure.hessian import eigenvalues
from batchscope.measure.sharpness import adaptive_sharpness, box_sharpness, random_columns
from batchscope.task import Task
from batchscope.training.batches import FixedBatches, make_source
from batchscope.training.seeding import seed_everything
from batchscope.training.step import evaluate, make_model, make_step
from environment import environment, save

SMALL, SHARE = 256, 0.1
PATIENCE, LEAST_STEPS, CAP = 10, 500, 30  # epochs, steps, epochs; the code that the authors published trains 20
EPSILONS = (1e-3, 5e-4)
EXAMPLES, CONVERGED_EXAMPLES = 40 * 256, 4 * 256
WORK = Path(__file__).parent / ".work" / "keskar"
CPU = torch.device("cpu")
PAPER = {  # F1 on MNIST, tables 2 to 4: SB, LB
    "full 0.001": (1.23, 205.14),
    "full 0.0005": (0.61, 42.90),
    "subspace 0.001": (0.11, 9.22),
    "subspace 0.0005": (0.05, 9.17),
    "test accuracy": (0.9803, 0.9781),
}


def main() -> None:
    """Train, measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--reverse", action="store_true", help="begin at the other end: beside another process")
    parser.add_argument("--save", action="store_true", help="write the table to benchmarks/results/")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    where = environment()
    print("  ".join(f"{k}: {v}" for k, v in where.items()), flush=True)
    task = keskar_task.task()
    large = math.ceil(SHARE * task.train_size)  # rounded down, each epoch would end with a batch of 2 examples
    runs = [(size, seed) for seed in range(arguments.seeds) for size in (SMALL, large)]
    found = [one(task, *run) for run in (reversed(runs) if arguments.reverse else runs)]
    table = compared(found, large)
    if arguments.save:
        print(save("keskar", {"environment": where, "paper": PAPER, "runs": found, "ratios": table}))


def one(task: Task, size: int, seed: int) -> dict[str, Any]:
    """One run and what is measured where it ends; both kept."""
    WORK.mkdir(parents=True, exist_ok=True)
    path = WORK / f"{size}_{seed}.pt"
    kept: dict[str, Any] = torch.load(path, weights_only=True) if path.exists() else {}
    if "state" not in kept:
        kept = trained(task, size, seed)
        torch.save(kept, path)
    if "measured" not in kept:
        kept["measured"] = measured(task, kept, seed)
        torch.save(kept, path)
    row = {"batch_size": size, "seed": seed, "epochs": kept["epochs"], "plateau": kept["plateau"], **kept["measured"]}
    print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
    return row


def trained(task: Task, size: int, seed: int) -> dict[str, Any]:
    """Until the epoch's mean training loss has stopped falling."""
    seed_everything(seed)
    model = make_model(task, CPU)
    initial = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = task.optimizer(model, task.lr)
    losses: list[float] = []
    counted = Counted(task)
    step = make_step(counted.task, model, optimizer)
    source, best = make_source(task, seed, CPU), math.inf
    since = 0
    started = time.monotonic()
    patience = max(PATIENCE, math.ceil(LEAST_STEPS * size / task.train_size))
    while since < patience and len(losses) < CAP:
        counted.reset()
        for batch in source.epoch(len(losses), size):
            step(batch)
        losses.append(counted.mean())
        since, best = (0, losses[-1]) if losses[-1] < best else (since + 1, best)
    seconds = time.monotonic() - started
    print(f"batch {size} seed {seed}: {len(losses)} epochs, loss {losses[-1]:.3g}, {seconds:.0f} s", flush=True)
    return {
        "state": model.state_dict(),
        "initial": initial,
        "losses": losses,
        "epochs": len(losses),
        "plateau": since >= patience,
    }


class Counted:
    """The task, with its losses summed on the way."""

    def __init__(self, task: Task) -> None:
        plain = task.loss
        assert plain is not None

        def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            value = plain(output, target)
            self.sum += value.detach() * len(target)
            self.examples += len(target)
            return value

        self.task = dataclasses.replace(task, loss=loss)
        self.reset()

    def reset(self) -> None:
        self.sum, self.examples = torch.zeros(()), 0

    def mean(self) -> float:
        return float(self.sum) / self.examples


def measured(task: Task, kept: dict[str, Any], seed: int) -> dict[str, float]:
    """Everything at the end of one run."""
    model = make_model(task, CPU)
    model.load_state_dict(kept["initial"])
    start = FullLoss(task, model, task.train, CPU, examples=1).point()
    model = make_model(task, CPU)
    model.load_state_dict(kept["state"])
    row = {}
    for name, data in (("train", task.train), ("test", task.test)):
        row[f"{name} accuracy"] = evaluate(task, model, FixedBatches(task, data, None, CPU))["accuracy"]
    everything = FullLoss(task, model, task.train, CPU)
    x = everything.point()
    row["training loss"] = everything.value(x)
    loss = everything.on(EXAMPLES)
    row["distance"] = float(torch.linalg.vector_norm(x - start))
    columns = random_columns(loss, seed)
    for space, basis in (("full", None), ("subspace", columns)):
        for epsilon in EPSILONS:
            row[f"{space} {epsilon:g}"] = box_sharpness(loss, x, epsilon, columns=basis).percent
    few = loss.on(CONVERGED_EXAMPLES)
    row["full 0.001, few examples"] = box_sharpness(few, x, EPSILONS[0]).percent
    row["full 0.001, converged"] = box_sharpness(few, x, EPSILONS[0], iterations=None).percent
    row["largest eigenvalue"] = eigenvalues(loss, x, both=False)[0].estimate or math.nan
    row["adaptive sharpness"] = adaptive_sharpness(loss, x)
    return row


def compared(found: list[dict[str, Any]], large: int) -> dict[str, dict[str, float]]:
    """Each quantity's mean at SB and LB, and the ratio LB / SB with a t interval on paired logs, beside the paper's."""
    table = {}
    for name in (k for k in found[0] if isinstance(found[0][k], float)):
        small_ones = np.array([r[name] for r in found if r["batch_size"] == SMALL])
        large_ones = np.array([r[name] for r in found if r["batch_size"] == large])
        logs = np.log(large_ones) - np.log(small_ones)
        n, ratio = len(logs), float(np.exp(logs.mean()))
        half = float(stats.t.ppf(0.975, n - 1) * logs.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
        paper = PAPER.get(name)
        row = {
            "small": statistics.mean(small_ones),
            "large": statistics.mean(large_ones),
            "ratio": ratio,
            "low": ratio * math.exp(-half),
            "high": ratio * math.exp(half),
        }
        table[name] = row | ({"paper": paper[1] / paper[0]} if paper else {})
        beside = f"  paper (MNIST) {paper[0]:g} -> {paper[1]:g}, ratio {paper[1] / paper[0]:.3g}" if paper else ""
        print(
            f"{name:20} SB {row['small']:9.4g}  LB {row['large']:9.4g}  LB/SB {ratio:7.3g} "
            f"[{row['low']:.3g} {row['high']:.3g}]{beside}"
        )
    gap = table["test accuracy"]["small"] - table["test accuracy"]["large"]
    away = 1 / table["distance"]["ratio"]
    print(f"test gap SB - LB {100 * gap:.2f} points (paper 0.22)  distance SB / LB {away:.2f} (paper 3 to 10)")
    return table


if __name__ == "__main__":
    main()
