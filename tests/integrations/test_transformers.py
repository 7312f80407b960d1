"""Does the adapter tell the meter what Transformers' Trainer does? The real Trainer, on a made-up clock."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from batchscope.integrations.transformers import StepMeterCallback
from batchscope.measure.meter import MIN_STEPS, WARM_UP, StepMeter
from batchscope.records import StepTiming

STEP, FETCH, EVALUATION = 2.0, 0.25, 100.0  # seconds on the made-up clock: a micro-batch, fetching it, evaluating one


@pytest.fixture(scope="module")
def transformers() -> Any:
    pytest.importorskip("accelerate")
    return pytest.importorskip("transformers")


class Loop:
    """Trainer, model and data whose every second is known, and the meter that listens."""

    def __init__(self, transformers: Any, folder: Path, **meter: Any) -> None:
        self.seconds, self.transformers, self.folder = 0.0, transformers, folder
        self.meter = StepMeter(clock=lambda: self.seconds, loop="Transformers", **meter)

    def collate(self, rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        self.seconds += FETCH
        return {"x": torch.stack(rows)}

    def train(self, examples: int, epochs: int = 1, **arguments: Any) -> None:
        """A linear model; evaluation goes through the model too, in eval mode."""
        loop = self

        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = nn.Linear(3, 1)

            def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
                loop.seconds += STEP if self.training else EVALUATION
                return {"loss": self.net(x).square().mean()}

        data = list(torch.randn(examples, 3, generator=torch.Generator().manual_seed(0)))
        settings = self.transformers.TrainingArguments(
            output_dir=str(self.folder),
            per_device_train_batch_size=8,
            num_train_epochs=epochs,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            **{"save_strategy": "no", **arguments},
        )
        self.transformers.Trainer(
            model=Model(),
            args=settings,
            train_dataset=data,
            eval_dataset=data[:8],
            data_collator=self.collate,
            callbacks=[StepMeterCallback(self.meter)],
        ).train()

    def only_timing(self) -> StepTiming:
        timing = self.meter.report()
        assert timing.loop == "Transformers"
        (only,) = timing.timings
        return only


def test_a_step_is_an_optimiser_step_with_all_that_it_accumulates(transformers: Any, tmp_path: Path) -> None:
    loop = Loop(transformers, tmp_path)
    loop.train(examples=3 * 8 * 60, gradient_accumulation_steps=3)
    t = loop.only_timing()
    assert (t.batch_size, t.steps_per_window) == (24, MIN_STEPS)
    assert set(t.seconds_per_step) == {3 * (STEP + FETCH)}
    assert set(t.phases["data"]) == {3 * FETCH}
    assert len(t.seconds_per_step) == (60 - WARM_UP - 1) // MIN_STEPS - 1  # the first window chooses


def test_evaluation_checkpoints_and_the_short_last_batch_are_no_part_of_steps(
    transformers: Any, tmp_path: Path
) -> None:
    """Epochs of 61 steps, the last of them short: evaluation after every 20, a checkpoint after every 33."""
    loop = Loop(transformers, tmp_path)
    loop.train(
        examples=8 * 60 + 3, epochs=3, eval_strategy="steps", eval_steps=20, save_strategy="steps", save_steps=33
    )
    assert (tmp_path / "checkpoint-33").is_dir()
    t = loop.only_timing()
    assert (t.batch_size, set(t.seconds_per_step)) == (8, {STEP + FETCH})
    assert loop.meter.discarded > 3 * 3


def test_the_meters_own_batch_size_comes_first(transformers: Any, tmp_path: Path) -> None:
    loop = Loop(transformers, tmp_path, batch_size=500)
    loop.train(examples=8 * 60)
    assert loop.only_timing().batch_size == 500


@pytest.mark.parametrize(("found", "expected"), [(False, 16 * 2 * 4), (True, 4 * 2 * 4)])
def test_processes_and_a_batch_size_that_was_searched_are_counted(
    monkeypatch: pytest.MonkeyPatch, found: bool, expected: int
) -> None:
    """The state of a resumed run still says the batch size of the run before, unless Trainer searches for one."""
    monkeypatch.setitem(sys.modules, "transformers", types.SimpleNamespace(TrainerCallback=object))
    seen: list[int] = []
    meter = StepMeter()
    monkeypatch.setattr(meter, "begin", seen.append)
    callback = StepMeterCallback(meter)
    arguments = types.SimpleNamespace(
        auto_find_batch_size=found, train_batch_size=16, gradient_accumulation_steps=2, world_size=4
    )
    callback.on_step_begin(arguments, types.SimpleNamespace(train_batch_size=4), None)
    assert seen == [expected]


def test_no_framework_is_loaded_with_batchscope() -> None:
    code = (
        "import sys, batchscope.integrations.lightning, batchscope.integrations.transformers\n"
        "import batchscope.integrations.accelerate\n"
        "loaded = {'lightning', 'pytorch_lightning', 'transformers', 'accelerate'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
