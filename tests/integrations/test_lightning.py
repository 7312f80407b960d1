"""Does the adapter tell the meter what Lightning's Trainer does? The real Trainer, on a made-up clock."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from batchscope.errors import CannotAnswer, UsageError
from batchscope.integrations.lightning import StepMeterCallback
from batchscope.measure.meter import MIN_STEPS, WARM_UP, StepMeter
from batchscope.records import StepTiming

STEP, FETCH, VALIDATION = 2.0, 0.25, 100.0  # seconds on the made-up clock: a micro-batch, fetching it, validating one

# Lightning's own: how it asks torch about its trees, and its advice on loader workers and on folders for checkpoints
OF_LIGHTNING = ("isinstance.treespec, LeafSpec", "The .* does not have many workers", "Checkpoint directory .* exists")
pytestmark = [pytest.mark.filterwarnings(f"ignore:.*{text}") for text in OF_LIGHTNING]


@pytest.fixture(scope="module")
def lightning() -> Any:
    return pytest.importorskip("lightning")


class Loop:
    """Trainer, model and data whose every second is known, and the meter that listens."""

    def __init__(self, lightning: Any, folder: Path, examples: int, **meter: Any) -> None:
        self.seconds, self.lightning, self.folder = 0.0, lightning, folder
        self.meter = StepMeter(clock=lambda: self.seconds, loop="Lightning", **meter)
        self.data = TensorDataset(torch.randn(examples, 3, generator=torch.Generator().manual_seed(0)))

    def passes(self, seconds: float) -> None:
        self.seconds += seconds

    def collate(self, rows: list[tuple[torch.Tensor]]) -> dict[str, torch.Tensor]:
        self.passes(FETCH)
        return {"x": torch.stack([x for (x,) in rows])}

    def module(self, fail_at: int | None = None, optimizers: int = 1) -> Any:
        """A linear model; with two optimisers, each is stepped by hand at every batch."""
        loop = self

        class Module(self.lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.net, self.automatic_optimization = nn.Linear(3, 1), optimizers == 1

            def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor | None:
                loop.passes(STEP)
                if fail_at is not None and index == fail_at:
                    raise ArithmeticError
                loss = self.net(batch["x"]).square().mean()
                if self.automatic_optimization:
                    return loss
                self.manual_backward(loss)
                for optimizer in self.optimizers():
                    optimizer.step()
                return None

            def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
                loop.passes(VALIDATION)

            def configure_optimizers(self) -> Any:
                return [torch.optim.SGD(self.parameters(), lr=0.01) for _ in range(optimizers)]

        return Module()

    def fit(self, module: Any, valid: bool = False, batch_size: int = 8, **trainer: Any) -> None:
        callbacks = [StepMeterCallback(self.meter), *trainer.pop("callbacks", [])]
        settings = {"enable_checkpointing": False, "max_epochs": 1, "limit_val_batches": int(valid), **trainer}
        train = DataLoader(self.data, batch_size=batch_size, collate_fn=self.collate)
        self.lightning.Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=self.folder,
            callbacks=callbacks,
            **settings,
        ).fit(module, train, DataLoader(TensorDataset(torch.ones(8, 3)), batch_size=8))

    def only_timing(self) -> StepTiming:
        timing = self.meter.report()
        assert timing.loop == "Lightning"
        (only,) = timing.timings
        return only


def test_a_step_is_one_batch(lightning: Any, tmp_path: Path) -> None:
    loop = Loop(lightning, tmp_path, examples=8 * 60)
    loop.fit(loop.module())
    t = loop.only_timing()
    assert (t.batch_size, t.steps_per_window) == (8, MIN_STEPS)
    assert set(t.seconds_per_step) == {STEP + FETCH}
    assert set(t.phases["data"]) == {FETCH}
    assert len(t.seconds_per_step) == (60 - WARM_UP - 1) // MIN_STEPS - 1  # the first window chooses


def test_a_step_is_an_optimiser_step_when_gradients_accumulate(lightning: Any, tmp_path: Path) -> None:
    """Epochs of 121 micro-batches: 40 steps of three, then one of a single micro-batch, which is never timed."""
    loop = Loop(lightning, tmp_path, examples=8 * 121)
    loop.fit(loop.module(), accumulate_grad_batches=3, max_epochs=2)
    t = loop.only_timing()
    assert t.batch_size == 24
    assert set(t.seconds_per_step) == {3 * (STEP + FETCH)}
    assert set(t.phases["data"]) == {FETCH}


def test_validation_and_checkpoints_are_no_part_of_steps(lightning: Any, tmp_path: Path) -> None:
    """Validation after every 20 of 61 batches, the last of them short; a checkpoint (50 s) after every 13 steps."""
    loop = Loop(lightning, tmp_path, examples=8 * 60 + 3)
    saves = lightning.pytorch.callbacks.ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=13, save_top_k=-1)
    module = loop.module()
    module.on_save_checkpoint = lambda checkpoint: loop.passes(50.0)
    loop.fit(module, valid=True, val_check_interval=20, max_epochs=3, callbacks=[saves], enable_checkpointing=True)
    assert list(tmp_path.glob("*.ckpt"))
    t = loop.only_timing()
    assert t.batch_size == 8
    assert set(t.seconds_per_step) == {STEP + FETCH}
    assert loop.meter.discarded > 3 * 3


def test_a_failed_run_leaves_a_meter_that_goes_on(lightning: Any, tmp_path: Path) -> None:
    loop = Loop(lightning, tmp_path, examples=8 * 60)
    with pytest.raises(ArithmeticError):
        loop.fit(loop.module(fail_at=17), accumulate_grad_batches=3)
    loop.passes(1000.0)
    with pytest.raises(CannotAnswer):
        loop.meter.report()
    loop.fit(loop.module(), accumulate_grad_batches=1)
    t = loop.only_timing()
    assert (t.batch_size, set(t.seconds_per_step)) == (8, {STEP + FETCH})


def test_several_optimisers_stepped_by_hand_are_one_step(lightning: Any, tmp_path: Path) -> None:
    loop = Loop(lightning, tmp_path, examples=8 * 60)
    loop.fit(loop.module(optimizers=2))
    assert set(loop.only_timing().seconds_per_step) == {STEP + FETCH}


def test_the_meters_own_batch_size_comes_first(lightning: Any, tmp_path: Path) -> None:
    loop = Loop(lightning, tmp_path, examples=8 * 60, batch_size=500)
    loop.fit(loop.module())
    assert loop.only_timing().batch_size == 500


def test_replicas_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Trainer says of data-parallel training: every replica works on a batch like this one."""
    seen: list[tuple[str, int | None]] = []
    meter = StepMeter()
    monkeypatch.setattr(meter, "begin", lambda n: seen.append(("begin", n)))
    monkeypatch.setattr(meter, "end", lambda n: seen.append(("end", n)))
    monkeypatch.setitem(sys.modules, "lightning.pytorch", types.SimpleNamespace(Callback=object))
    trainer = types.SimpleNamespace(
        global_step=0, accumulate_grad_batches=2, distributed_sampler_kwargs={"num_replicas": 4, "rank": 1}
    )
    callback = StepMeterCallback(meter)
    for step, batch in ((0, torch.ones(8, 3)), (1, torch.ones(5, 3))):
        callback.on_train_batch_start(trainer, None, batch, step)
        trainer.global_step = step
        callback.on_train_batch_end(trainer, None, None, batch, step)
    assert seen == [("begin", 8 * 2 * 4), ("end", (8 + 5) * 4)]


def test_the_callback_suits_every_lightning_that_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = type("One", (), {}), type("Other", (), {})
    monkeypatch.delitem(sys.modules, "lightning.pytorch", raising=False)
    monkeypatch.delitem(sys.modules, "pytorch_lightning", raising=False)
    with pytest.raises(
        UsageError, match=r"expected lightning\.pytorch or pytorch_lightning to be imported, got neither"
    ):
        StepMeterCallback(StepMeter())
    monkeypatch.setitem(sys.modules, "pytorch_lightning", types.SimpleNamespace(Callback=other))
    assert isinstance(StepMeterCallback(StepMeter()), other)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", types.SimpleNamespace(Callback=one))
    assert isinstance(StepMeterCallback(StepMeter()), one)
    assert isinstance(StepMeterCallback(StepMeter()), other)
