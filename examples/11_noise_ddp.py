"""In plain data-parallel training: how noisy are the gradients? The replicas are the parts that are compared.

torchrun --standalone --nproc-per-node 2 examples/11_noise_ddp.py
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import batchscope as bs

EPOCHS = 8


def train(by_bucket: bool) -> bs.NoiseReport:
    """Batch size 64 over all processes; norms parameter by parameter, or bucket by bucket as DDP sends them."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels))
    sampler = DistributedSampler(data, drop_last=True)
    loader = DataLoader(data, batch_size=64 // dist.get_world_size(), sampler=sampler, drop_last=True)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    monitor = bs.NoiseMonitor(model, every=1, data_size=len(data))  # default: so often that it costs 2 %
    if by_bucket:  # cheaper, and without layers; around a hook of your own: monitor.communication_hook(mine)
        model.register_comm_hook(None, monitor.communication_hook())
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            monitor.step(loss)
            optimizer.step()
    monitor.remove()
    return monitor.report()


def main() -> tuple[bs.NoiseReport, bs.NoiseReport]:
    """Both ways; every process comes to the same numbers."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: processes talk over loopback
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    try:
        reports = train(by_bucket=False), train(by_bucket=True)
        said = [""] * dist.get_world_size()
        dist.all_gather_object(said, f"by parameter: {reports[0]}\nby bucket: {reports[1]}")
        if dist.get_rank() == 0:
            print("\n".join(f"rank {rank}, {line}" for rank, text in enumerate(said) for line in text.splitlines()))
    finally:
        dist.destroy_process_group()
    return reports


if __name__ == "__main__":
    main()
