"""In your own loop: how noisy are its gradients? Three lines more: a monitor, a call after `backward`, a report.

python examples/07_noise_monitor.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import batchscope as bs

EPOCHS = 12


def main() -> bs.NoiseReport:
    """A loop as one writes it by hand, batch size 64."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels))
    loader = DataLoader(data, batch_size=64, shuffle=True, drop_last=True)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    monitor = bs.NoiseMonitor(model, every=1, data_size=len(data))  # a short run; default: so often that it costs 2 %
    for _ in range(EPOCHS):
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            monitor.step(loss)
            optimizer.step()
    monitor.remove()

    report = monitor.report()
    print(report)
    return report


if __name__ == "__main__":
    main()
