"""Does the adapter hear from an Accelerator when a step's gradients are complete? The real one, exact numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from exact import EXAMPLES, assert_saw, data, hooks_in, last_loss, left_behind, network, seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from two_processes import assert_as_expected

from batchscope.integrations.accelerate import noise_monitor


@pytest.fixture(scope="module")
def accelerate() -> Any:
    return pytest.importorskip("accelerate")


def train(accelerate: Any, batch_size: int, accumulation: int, lr: float = 0.0, **options: Any) -> tuple[Any, Any]:
    """(monitor or None, model) after twelve epochs of a loop that clips; `monitored=False` leaves the monitor out."""
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    plain = network()
    loader = DataLoader(TensorDataset(*data()), batch_size=batch_size)
    model, optimizer, loader = accelerator.prepare(plain, torch.optim.SGD(plain.parameters(), lr=lr), loader)
    monitored = options.pop("monitored", True)
    monitor = noise_monitor(accelerator, model, optimizer=optimizer, **options) if monitored else None
    for _ in range(12):
        for x, y in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(x), y)
                accelerator.backward(loss)
                if monitor is not None:
                    monitor.step(loss, examples=len(x) * accelerator.num_processes)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1e-3 if lr == 0 else 1.0)
                optimizer.step()
                optimizer.zero_grad()
    if monitor is not None:
        monitor.remove()
    return monitor, plain


@pytest.mark.parametrize(
    ("accumulation", "source", "parts"), [(1, "examples", EXAMPLES), (1, "parts", 2), (4, "micro-batches", 4)]
)
def test_a_step_is_where_gradients_are_together(accelerate: Any, accumulation: int, source: str, parts: int) -> None:
    given = source if source == "parts" else None
    monitor, model = train(accelerate, EXAMPLES // accumulation, accumulation, every=1, source=given)
    assert monitor.steps == 12
    assert_saw(monitor.report(), source, parts, last_loss(accumulation))
    assert not hooks_in(model)


def test_a_short_last_accumulation_is_a_step(accelerate: Any) -> None:
    """Epochs of four micro-batches, accumulated by three."""
    monitor, _ = train(accelerate, EXAMPLES // 4, 3, every=1)
    assert monitor.steps == 24


def test_what_a_monitored_run_leaves_is_what_an_unmonitored_one_leaves(accelerate: Any) -> None:
    left = []
    for options in ({"monitored": False}, {}, {"every": 1}):
        seed()
        _, model = train(accelerate, 8, 2, lr=0.3, **options)
        assert not hooks_in(model)
        left.append(left_behind(model))
    assert left[0] == left[1] == left[2]


def test_a_loss_scale_is_the_accelerators(accelerate: Any) -> None:
    """Gradients as a scaled loss leaves them; on a CPU no Accelerator scales, so one is stood in for."""

    class Scaling:
        scaler, sync_gradients = torch.amp.GradScaler("cpu", init_scale=1024.0), True

    net, (x, y) = network(), data()
    monitor = noise_monitor(Scaling(), net, every=1)
    for _ in range(12):
        net.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        Scaling.scaler.scale(loss).backward()
        monitor.step(loss)
    assert_saw(monitor.report(), "examples", EXAMPLES, last_loss())
    monitor.remove()
    assert not hooks_in(net)


TWO_PROCESSES = """
from test_accelerate_noise import *
import accelerate
for accumulation, parts in ((1, 2), (2, 4)):
    monitor, model = train(accelerate, 16 // accumulation, accumulation, every=1)
    assert_saw(monitor.report(), "replicas", parts, monitor.report().measurements[0].loss)
    assert monitor.steps == 12 and not hooks_in(model)
torch.distributed.destroy_process_group()
print("as expected", flush=True)
"""


def test_two_processes(accelerate: Any, tmp_path: Path) -> None:
    """Each half of the data at once, and in two micro-batches."""
    assert_as_expected(TWO_PROCESSES, tmp_path)
