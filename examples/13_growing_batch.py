"""In your own loop: a batch that grows with the gradient noise. A controller beside the optimiser, one call a step.

python examples/13_growing_batch.py
"""

import itertools

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import batchscope as bs

EXAMPLES = 30 * 1797  # 30 epochs
BATCH_SIZE = 32  # to begin with
MICRO_BATCH = 16  # of every pass: a batch is several of them


def main() -> bs.BatchSizeController:
    """A loop as one writes it by hand, with accumulation; it ends with the examples, as the schedule does."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels))
    loader = DataLoader(data, batch_size=MICRO_BATCH, shuffle=True, drop_last=True)
    micro_batches = itertools.chain.from_iterable(itertools.repeat(loader))  # epoch after epoch
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EXAMPLES // BATCH_SIZE)

    monitor = bs.NoiseMonitor(model, every=4)
    controller = bs.BatchSizeController(
        optimizer,
        batch_size=BATCH_SIZE,
        micro_batch_size=MICRO_BATCH,
        most=512,
        rule="with the noise scale",
        scale="linear",  # plain SGD; for Adam: "square root"
        scheduler=schedule,
    )
    while controller.examples < EXAMPLES:
        optimizer.zero_grad()
        for x, y in itertools.islice(micro_batches, controller.accumulation):
            loss = nn.functional.cross_entropy(model(x), y)
            (loss / controller.accumulation).backward()
        monitor.step(examples=controller.batch_size)
        optimizer.step()
        if controller.step(noise_scale=monitor):  # instead of schedule.step()
            print(controller.changes[-1])
    monitor.remove()

    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(data.tensors[0]), data.tensors[1])
    steps = EXAMPLES // BATCH_SIZE
    print(f"{controller.steps} steps instead of {steps}, {controller.examples:,} examples, training loss {loss:.4f}")
    return controller


if __name__ == "__main__":
    main()
