"""Does a loop with an Accelerator train with a growing batch as a loop by hand does? The real one, bit for bit."""

from __future__ import annotations

import os
import types
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from exact import network
from growing_by_hand import MICRO, PLAN, SCHEDULES, ByHand, Planned, assert_same, optimizer_of, part
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from two_processes import assert_as_expected

import batchscope as bs
from batchscope.errors import UnsupportedTask, UsageError
from batchscope.integrations.accelerate import batch_size_controller, noise_monitor


@pytest.fixture(scope="module")
def accelerate() -> Any:
    return pytest.importorskip("accelerate")


def accelerator_of(accelerate: Any, accumulation: int = 1) -> Any:
    plugin = accelerate.utils.GradientAccumulationPlugin(num_steps=accumulation, sync_with_dataloader=False)
    return accelerate.Accelerator(cpu=True, gradient_accumulation_plugin=plugin)


class Loop:
    """A loop as one writes it with Accelerate; `prepared`: the schedule too."""

    def __init__(
        self,
        accelerate: Any,
        schedule: str | None = "cosine",
        accumulation: int = 1,
        prepared: bool = True,
        **options: Any,
    ) -> None:
        self.accelerator = accelerator_of(accelerate, accumulation)
        self.plain, of = network(), self.accelerator.num_processes
        data = DataLoader(TensorDataset(*part(int(os.environ.get("RANK", "0")) if of > 1 else 0, of)), batch_size=MICRO)
        optimizer = optimizer_of(self.plain)
        made = SCHEDULES[schedule](optimizer) if schedule else None
        self.model, self.optimizer = self.accelerator.prepare(self.plain, optimizer)
        self.scheduler = self.accelerator.prepare(made) if made is not None and prepared else made
        self.loader = data if of > 1 else self.accelerator.prepare(data)  # it would deal the batches out
        self.controller = batch_size_controller(
            self.accelerator,
            self.optimizer,
            **{"micro_batch_size": MICRO, "rule": Planned(PLAN), "scheduler": self.scheduler, **options},
        )
        self.accelerator.register_for_checkpointing(self.controller)
        self.monitor: bs.NoiseMonitor | None = None
        self.folders: list[Path] = []

    def train(self, epochs: int, skip: int = 0, save_in: Path | None = None) -> Loop:
        """Leaving out so many micro-batches; saving after every other."""
        accelerator = self.accelerator
        for number in range(skip // len(self.loader), epochs):
            for index, (x, y) in enumerate(self.loader):
                micro_step = number * len(self.loader) + index
                if micro_step < skip:
                    continue
                with accelerator.accumulate(self.model):
                    accelerator.backward(nn.functional.cross_entropy(self.model(x), y))
                    if self.monitor is not None:
                        self.monitor.step(examples=len(x))
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                self.controller.step(noise_scale=self.monitor, examples=len(x) * accelerator.num_processes)
                if save_in is not None and accelerator.sync_gradients:
                    accelerator.save_state(str(save_in / f"{micro_step + 1}"))
        return self


@pytest.mark.parametrize("schedule", ["cosine", "lambda", None])
@pytest.mark.parametrize(("accumulation", "prepared"), [(1, True), (2, False)])
def test_trains_as_a_loop_by_hand(accelerate: Any, schedule: str | None, accumulation: int, prepared: bool) -> None:
    """Batches of 1, 3, 5, 4, 7 and 30 times the first: nearly two epochs, which Accelerate does not cut."""
    loop = Loop(accelerate, schedule, accumulation, prepared).train(8)
    hand = ByHand(schedule, accumulation).train(8, cut=False)
    assert_same(loop.plain, loop.controller, hand)
    assert loop.controller.batch_size == 30 * accumulation * MICRO
    assert loop.accelerator.gradient_accumulation_steps == 30 * accumulation


def test_goes_on_from_a_checkpoint_bit_for_bit(accelerate: Any, tmp_path: Path) -> None:
    """From every step, in an Accelerator that was made with the first accumulation."""
    hand = ByHand().train(6, cut=False)
    whole = Loop(accelerate).train(6, save_in=tmp_path)
    assert_same(whole.plain, whole.controller, hand)
    folders = list(tmp_path.iterdir())
    assert len(folders) == hand.controller.steps > 11
    for folder in folders:
        again = Loop(accelerate)
        again.accelerator.load_state(str(folder))
        again.train(6, skip=int(folder.name))
        assert_same(again.plain, again.controller, hand)


def test_a_step_that_was_not_complete_begins_again(accelerate: Any, tmp_path: Path) -> None:
    """Saved after 1, 1, 3 and two more micro-batches."""
    loop = Loop(accelerate)
    loop.loader = list(islice(loop.loader, 7))
    loop.train(1)
    assert loop.controller.steps == 3
    loop.accelerator.save_state(str(tmp_path))
    again = Loop(accelerate)
    again.accelerator.load_state(str(tmp_path))
    again.loader = list(islice(again.loader, 3))
    again.train(1)
    assert (again.controller.steps, again.controller.examples) == (4, 8 * MICRO)


def test_hears_the_noise_scale_and_the_loss(accelerate: Any) -> None:
    options = {"rule": "with the noise scale", "scale": "linear"}
    loop, hand = Loop(accelerate, **options), ByHand(**options)
    settings = {"every": 1, "source": "examples"}
    loop.monitor = noise_monitor(loop.accelerator, loop.model, optimizer=loop.optimizer, **settings)
    hand.noise = bs.NoiseMonitor(hand.model, optimizer=hand.controller.optimizer, **settings)
    loop.train(8)
    hand.train(8, cut=False)
    assert loop.controller.changes == hand.controller.changes != []
    assert all(torch.equal(a, b) for a, b in zip(loop.plain.parameters(), hand.weights(), strict=True))
    heard = Loop(accelerate, schedule=None, accumulation=2, rule=Planned({}))
    for loss in (3.0, None, None, 2.0, None, None):
        with heard.accelerator.accumulate(heard.model):
            pass
        heard.controller.step(loss=loss)
    assert heard.controller.rule.heard == [3.0, 2.0]
    assert heard.controller.examples == 3 * 2 * MICRO


def test_what_is_refused(accelerate: Any) -> None:
    optimizer = optimizer_of(network())
    asked = {"micro_batch_size": MICRO, "rule": "on plateau"}
    with pytest.raises(UsageError, match="steps at a loader's end too: write GradientAccumulationPlugin"):
        batch_size_controller(accelerate.Accelerator(cpu=True), optimizer, **asked)
    other = types.SimpleNamespace(distributed_type=accelerate.DistributedType.DEEPSPEED)
    with pytest.raises(UnsupportedTask, match="expected an Accelerator that accumulates itself, got DEEPSPEED"):
        batch_size_controller(other, optimizer, **asked)
    with pytest.raises(UsageError, match="expected a scale of linear, square root, held, got 'cubic'"):
        batch_size_controller(accelerator_of(accelerate), optimizer, **asked, scale="cubic")


TWO_PROCESSES = """
from test_accelerate_growing import *
import accelerate
loop = Loop(accelerate).train(6)
hand = ByHand(of=2).train(6, cut=False)
assert_same(loop.plain, loop.controller, hand, rtol=1e-5)
torch.distributed.destroy_process_group()
print("as expected", flush=True)
"""


def test_two_processes(accelerate: Any, tmp_path: Path) -> None:
    """Each half of the data: as one process that takes both halves' micro-batches together, under one schedule."""
    assert_as_expected(TWO_PROCESSES, tmp_path)
