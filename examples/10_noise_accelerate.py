"""In a loop with Accelerate: how noisy are its gradients? Four lines more; accumulation and processes are seen to.

python examples/10_noise_accelerate.py
"""

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import batchscope as bs
from batchscope.integrations.accelerate import noise_monitor

EPOCHS = 12


def main() -> bs.NoiseReport:
    """Batch size 64: micro-batches of 32, two per optimiser step, which are the parts that are compared."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels))
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(data, batch_size=32, shuffle=True, drop_last=True)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    monitor = noise_monitor(accelerator, model, every=1, data_size=len(data))  # default: so often that it costs 2 %
    for _ in range(EPOCHS):
        for x, y in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(x), y)
                accelerator.backward(loss)
                monitor.step(loss)
                optimizer.step()
                optimizer.zero_grad()
    monitor.remove()
    accelerator.end_training()

    report = monitor.report()
    print(report)
    return report


if __name__ == "__main__":
    main()
