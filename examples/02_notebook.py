"""In a notebook or a script: a `Task` object, studied in this process, and the answer as records.

python examples/02_notebook.py
"""

import torch
from torch import nn

import batchscope as bs


def make_task() -> bs.Task:
    """Regression on made-up data; the goal is left open, so it is what the task's own point reaches."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512 + 256, 8, generator=generator)
    y = torch.sin(x.sum(1, keepdim=True)) + 0.1 * torch.randn(len(x), 1, generator=generator)
    return bs.Task(
        name="sine",
        model=lambda: nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1)),
        loss=nn.functional.mse_loss,
        train=(x[:512], y[:512]),
        valid=(x[512:], y[512:]),
        optimizer=lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9),
        lr=0.02,
        batch_size=16,
        budget=20 * 512,
    )


def main() -> bs.StudyResult:
    """Three batch sizes at the held learning rate, two seeds."""
    result = bs.study(make_task(), batch_sizes=[16, 64, 256], policy="held", seeds=2, store="notebook.db", draw=False)
    for row in result.rows:
        steps, loss = row.steps_to_goal, row.min_validation_loss
        said = f"{steps.estimate:,.0f} steps" if steps.estimate is not None else f"more than {steps.low:,.0f} steps"
        print(f"batch size {row.batch_size}: {said} to {result.goal}, lowest validation loss {loss.estimate:.3f}")
    for claim in result.claims:
        print(f"({claim.number}) {claim.claim}: {claim.verdict}. {claim.why}")
    return result


if __name__ == "__main__":
    main()
