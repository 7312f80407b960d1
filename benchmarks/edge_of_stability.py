"""Does training go to the edge of stability? Curvature x learning rate along full-batch descent, and along SGD.

A small tanh network on a subset of Fashion-MNIST, mean squared error. Plain gradient descent sharpens until the largest
eigenvalue of the Hessian is 2 / learning rate and hovers there (Cohen et al. 2021); SGD until the *batch* sharpness is,
E g'Hg / |g|^2 over batches of its own size, while the full loss's eigenvalue stays below (Andreyev & Beneventano 2024).

    target: the mean over the last third of the run lies in 1.8 to 2.2, for gradient descent and SGD at batch 32

At batch 16 the loss is nearly 0 before the edge is reached, and sharpening ends with it; printed as found.

    python benchmarks/edge_of_stability.py [--save] [--check]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import batchscope as bs
from batchscope.measure.full_loss import FullLoss
from batchscope.measure.hessian import eigenvalues
from batchscope.measure.sharpness import batch_sharpness
from batchscope.training.batches import make_source
from batchscope.training.seeding import seed_everything
from batchscope.training.step import make_model, make_step
from environment import environment, save

EXAMPLES, WIDTH = 1000, 200
RUNS = {  # batch size, learning rate, steps
    "gradient descent": (EXAMPLES, 0.05, 1500),
    "SGD, batch 32": (32, 0.1, 12000),
    "SGD, batch 16": (16, 0.06, 16000),
}
LOOKS = 30
DRAWS = 300  # batches of the batch sharpness
LOW, HIGH = 1.8, 2.2
CPU = torch.device("cpu")


def task() -> bs.Task:
    """Ten outputs, one-hot targets."""
    base = bs.load_task("fashion-mnist-mlp")
    x, y = (t[:EXAMPLES] for t in base.train)
    targets = F.one_hot(y, 10).float()
    return bs.Task(
        name="edge",
        model=lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(784, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 10)
        ),
        loss=lambda output, target: 0.5 * (output - target).square().sum(1).mean(),
        train=(x, targets),
        valid=(x[:100], targets[:100]),
        optimizer=lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr),
        lr=0.1,
        batch_size=EXAMPLES,
    )


def main() -> None:
    """Train, looking now and then."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--save", action="store_true", help="write the traces to benchmarks/results/")
    parser.add_argument("--check", action="store_true", help="exit 1 where the target in the header is missed")
    arguments = parser.parse_args()
    where = environment()
    print("  ".join(f"{k}: {v}" for k, v in where.items()), flush=True)
    found = {name: along(*how) for name, how in RUNS.items()}
    ends = {"gradient descent": last_third(found["gradient descent"], "largest")}
    for name in list(RUNS)[1:]:
        ends[name] = last_third(found[name], "batch")
        ends[f"{name}, largest eigenvalue"] = last_third(found[name], "largest")
    print("  ".join(f"{name}: {value:.3f} / learning rate" for name, value in ends.items()))
    if arguments.save:
        print(save("edge_of_stability", {"environment": where, "runs": RUNS, "traces": found, "ends": ends}))
    if arguments.check and not all(LOW <= ends[name] <= HIGH for name in list(RUNS)[:2]):
        print("MISSED")
        sys.exit(1)


def along(batch_size: int, rate: float, steps: int) -> list[dict[str, Any]]:
    """Both curvatures x learning rate, LOOKS times along one run."""
    one = task()
    seed_everything(0)
    model = make_model(one, CPU)
    step = make_step(one, model, one.optimizer(model, rate))
    source, lines, done = make_source(one, 0, CPU), [], 0
    while done < steps:
        for batch in source.epoch(done, batch_size):
            step(batch)
            done += 1
            if done % (steps // LOOKS) == 0:
                lines.append(look(one, model, batch_size, rate, done))
            if done >= steps:
                break
    return lines


def look(one: bs.Task, model: nn.Module, batch_size: int, rate: float, done: int) -> dict[str, Any]:
    """What is measured at one moment; the model is copied."""
    copied = make_model(one, CPU)
    copied.load_state_dict(model.state_dict())
    loss = FullLoss(one, copied, one.train, CPU, chunk=EXAMPLES)
    x = loss.point()
    row = {
        "step": done,
        "loss": loss.value(x),
        "largest": rate * (eigenvalues(loss, x, both=False)[0].estimate or 0.0),
        "batch": rate
        * (batch_sharpness(loss, x, batch_size, draws=DRAWS if batch_size < EXAMPLES else 1).estimate or 0.0),
    }
    print("  ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)
    return row


def last_third(lines: list[dict[str, Any]], name: str) -> float:
    """The mean of a quantity over the end of a run."""
    return statistics.mean(line[name] for line in lines[-len(lines) // 3 :])


if __name__ == "__main__":
    main()
