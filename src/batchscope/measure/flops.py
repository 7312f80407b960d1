"""How many floating-point operations is a training step, and how many could the device do?

Counted by torch's own FlopCounterMode over one forward and backward pass of the model as it is: matrix products,
convolutions and attention, 2 per multiply-add; element-wise work is not counted. Divided by the examples of the batch.
Peaks are the makers' data-sheet figures, dense (without sparsity), by name of the device and precision; where the name
is not in the table there is no utilisation.
"""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from batchscope.records import FlopCount
from batchscope.task import Task
from batchscope.training.batches import examples_in, make_source
from batchscope.training.seeding import seed_everything
from batchscope.training.step import make_model

TERA = 1e12
# NVIDIA's data sheets, dense: (name contains, fp32 without tensor cores, bf16 with). torch's default for fp32 matrix
# products is full fp32 (`torch.backends.cuda.matmul.allow_tf32` is off).
PEAKS = (
    ("H200", 67.0, 989.0),
    ("H100 PCIe", 51.0, 756.0),
    ("H100 NVL", 60.0, 835.0),
    ("H100", 67.0, 989.0),
    ("A100", 19.5, 312.0),
    ("L40S", 91.6, 362.0),
    ("L4", 30.3, 121.0),
    ("A10G", 31.5, 70.0),
    ("A10", 31.2, 125.0),
    ("T4", 8.1, None),
    ("V100", 15.7, None),
)


def count_flops(task: Task, device: torch.device, precision: str) -> FlopCount | None:
    """Operations of one training step per example, at the task's own batch size; None where nothing was counted."""
    seed_everything(0)
    model, source = make_model(task, device), make_source(task, 0, device)
    batch = next(iter(source.epoch(0, task.batch_size)))
    with (
        FlopCounterMode(display=False) as counter,
        torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"),
    ):
        task.batch_loss(model, batch).backward()
    examples, total = examples_in(batch), counter.get_total_flops()
    if total == 0:
        return None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    peak, source_of_peak = device_peak(name, precision)
    return FlopCount(total / examples, examples, peak, source_of_peak)


def device_peak(name: str, precision: str) -> tuple[float | None, str]:
    """(operations per second, where from) of a device at a precision; (None, "") where it is not known."""
    for part, fp32, bf16 in PEAKS:
        if part in name:
            tera = bf16 if precision == "bf16" else fp32
            return (tera * TERA, f"NVIDIA's data sheet, {part}, {precision}, dense") if tera else (None, "")
    return None, ""
