"""Are operations counted as on paper, and is the peak the device's own?"""

from __future__ import annotations

import torch
from torch import nn

from batchscope.measure.energy import EnergyMeter
from batchscope.measure.flops import count_flops, device_peak
from toys import CPU, toy


def test_a_linear_network_by_hand() -> None:
    """5 -> 8 -> 3: forward 2 (5*8 + 8*3); backward the same for weights, and 2 * 8*3 for the inputs of the second."""
    found = count_flops(toy(), CPU, "fp32")
    assert found is not None
    assert found.per_example == 2 * (5 * 8 + 8 * 3) * 2 + 2 * 8 * 3
    assert (found.batch_size, found.peak_per_second) == (8, None)


def test_nothing_to_count_is_none() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :3] * self.scale

    assert count_flops(toy(model=Scale), CPU, "fp32") is None


def test_peaks_by_name_and_precision() -> None:
    assert device_peak("NVIDIA H100 80GB HBM3", "bf16")[0] == 989e12
    assert device_peak("NVIDIA H100 PCIe", "fp32")[0] == 51e12
    assert device_peak("Tesla T4", "bf16") == (None, "")
    assert device_peak("AMD EPYC", "fp32") == (None, "")


def test_energy_of_a_cpu_is_not_measured() -> None:
    assert EnergyMeter(CPU).joules() is None
