"""How much energy did the device take? NVIDIA's own counter where it can be read, else nothing: never an estimate.

NVML's total-energy counter (mJ since the driver was loaded) moves about every 0.1 s, so that single short windows are
coarse; their mean over the rounds is not. It counts the whole card: other processes on it, and idling, included.
"""

from __future__ import annotations

import importlib

import torch

NOT_MEASURED = "not measured"
MEASURED = "NVML's total-energy counter: the whole card, idle power included"


class EnergyMeter:
    """Joules of a CUDA device so far; None everywhere where that cannot be read."""

    def __init__(self, device: torch.device) -> None:
        self._handle, self._nvml = None, None
        if device.type != "cuda":
            return
        try:
            pynvml = importlib.import_module("pynvml")
        except ImportError:
            return
        try:
            pynvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(device).uuid)
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
            self._nvml = pynvml
        except (pynvml.NVMLError, AttributeError):
            self._handle = None

    def joules(self) -> float | None:
        """The counter, or None where there is none."""
        if self._nvml is None or self._handle is None:
            return None
        try:
            return self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1000.0
        except self._nvml.NVMLError:
            return None
