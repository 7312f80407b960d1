"""In your own loop: how many seconds does its step take? A meter around the step; evaluation is paused for.

python examples/04_step_meter.py
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import batchscope as bs
from batchscope.records import TimingPass

EPOCHS = 16


def main() -> TimingPass:
    """A loop as one writes it by hand; what the meter needs is three lines of it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8192, 64, generator=generator)
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=64, shuffle=True)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)

    meter = bs.StepMeter(loop="by hand")
    for _ in range(EPOCHS):
        for inputs, target in loader:
            with meter.step(batch_size=len(inputs)):
                optimizer.zero_grad()
                nn.functional.mse_loss(model(inputs), target).backward()
                optimizer.step()
        with meter.pause(), torch.no_grad():
            nn.functional.mse_loss(model(x), x.sum(1, keepdim=True))

    timing = meter.report()
    for t in timing.timings:
        seconds, wait = sorted(t.seconds_per_step), sorted(t.phases["data"])
        middle = len(seconds) // 2
        print(
            f"batch size {t.batch_size}: {seconds[middle] * 1e6:,.0f} us per step, of which waiting for data "
            f"{wait[middle] * 1e6:,.0f} us ({len(seconds)} windows of {t.steps_per_window} steps, loop {timing.loop})"
        )
    return timing


if __name__ == "__main__":
    main()
