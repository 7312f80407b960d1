"""Does Lightning's Trainer train with a growing batch as a loop by hand does? The real Trainer, bit for bit."""

from __future__ import annotations

import copy
import logging
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from exact import network
from growing_by_hand import EXAMPLES, MICRO, PLAN, SCHEDULES, ByHand, Planned, assert_same, optimizer_of, part
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset
from two_processes import assert_as_expected

import batchscope as bs
from batchscope.errors import UnsupportedTask, UsageError
from batchscope.integrations.growing_lightning import MicroBatches
from batchscope.integrations.lightning import GrowingBatchCallback, NoiseCallback

# Lightning's own: how it asks torch about its trees, its advice on loader workers, on a last short accumulation, on
# folders for checkpoints and on callbacks that made them
OF_LIGHTNING = (
    "isinstance.treespec, LeafSpec",
    "The .* does not have many workers",
    "The number of training batches",
    "Checkpoint directory .* exists",
    "Be aware that when using `ckpt_path`",
)
pytestmark = [pytest.mark.filterwarnings(f"ignore:.*{text}") for text in OF_LIGHTNING]
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "limit_val_batches": 0,
}


@pytest.fixture(scope="module")
def lightning() -> Any:
    return pytest.importorskip("lightning")


def module_of(lightning: Any, schedule: str | None = "cosine", interval: str = "step") -> Any:
    """As one writes it for Lightning; `fail_at` a step, leave epochs `before` a batch."""

    class Module(lightning.LightningModule):
        fail_at = before = -1

        def __init__(self) -> None:
            super().__init__()
            self.net = network()
            self.rates: list[float] = []  # of each optimiser step

        def on_train_batch_start(self, batch: Any, index: int) -> int | None:
            return -1 if index == self.before else None

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            if self.trainer.global_step == self.fail_at:
                raise ArithmeticError
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.rates.append(optimizer.param_groups[0]["lr"])

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            optimizer = optimizer_of(self)
            if schedule is None:
                return optimizer
            made = {**SCHEDULES, "plateau": lr_scheduler.ReduceLROnPlateau}[schedule](optimizer)
            config = {"scheduler": made, "interval": interval}
            if schedule == "plateau":
                config["monitor"] = "val_loss"
            return {"optimizer": optimizer, "lr_scheduler": config}

    return Module()


def loader(of: int = 1) -> DataLoader:
    """Of two devices the first has the first half."""
    rank = int(os.environ.get("RANK", "0")) if of > 1 else 0
    return DataLoader(TensorDataset(*part(rank, of)), batch_size=MICRO)


class Resumable(DataLoader):
    """A loader that knows where it is; at its end it is at the beginning."""

    at = start = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start = state["at"] % len(self)

    def __iter__(self) -> Any:
        batches = list(super().__iter__())
        first, self.start = self.start, 0
        for self.at in range(first + 1, len(batches) + 1):
            yield batches[self.at - 1]


def fit(lightning: Any, module: Any, callbacks: list[Any], ckpt: Any = None, data: Any = None, **trainer: Any) -> Any:
    settings = {**QUIET, "max_epochs": 6, "use_distributed_sampler": False, **trainer}
    made = lightning.Trainer(callbacks=callbacks, **settings)
    made.fit(module, data or loader(), DataLoader(TensorDataset(*part()), batch_size=EXAMPLES), ckpt_path=ckpt)
    return made


def test_remainders_are_counted_from_a_steps_first() -> None:
    """As a naive loop counts; equal as a number, copied as one."""
    for first in range(5):
        for number in range(1, 6):
            passes = MicroBatches(number, first)
            ends = [n for n in range(first + 1, 30) if n % passes == 0]
            assert ends == list(range(first + number, 30, number))
            for again in (copy.deepcopy(passes), pickle.loads(pickle.dumps(passes))):
                assert (again, (first + number) % again, 1.0 / again) == (number, 0, 1.0 / number)


@pytest.mark.parametrize("schedule", ["cosine", "lambda", None])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_trains_as_a_loop_by_hand(lightning: Any, schedule: str | None, accumulation: int) -> None:
    """Batches of 1, 3, 5, 4, 7 and 16 (an epoch) times the first, from one step to the next."""
    growing, module = GrowingBatchCallback(Planned(PLAN)), module_of(lightning, schedule)
    trainer = fit(lightning, module, [growing], accumulate_grad_batches=accumulation)
    hand = ByHand(schedule, accumulation, most=16 * MICRO).train(6, cut=True)
    assert_same(module.net, growing.controller, hand)
    assert trainer.global_step == growing.controller.steps
    assert growing.controller.examples == 6 * EXAMPLES
    assert growing.controller.batch_size == 16 * MICRO
    assert type(trainer.accumulate_grad_batches) is int
    assert trainer.accumulate_grad_batches == accumulation
    assert len(set(module.rates)) > 3


def test_a_second_run_begins_anew(lightning: Any) -> None:
    growing, found = GrowingBatchCallback(Planned(PLAN)), []
    for _ in range(2):
        module = module_of(lightning)
        fit(lightning, module, [growing])
        found.append((growing.controller.changes, [p.tolist() for p in module.parameters()]))
    assert found[0] == found[1]


@pytest.mark.parametrize("when", ["epochs' ends", "epochs' last steps", "all steps"])
def test_goes_on_from_a_checkpoint_bit_for_bit(lightning: Any, tmp_path: Path, when: str) -> None:
    """Within an epoch, with a loader that can be resumed; where Lightning warns for want of one, the test fails."""
    hand = ByHand(most=16 * MICRO).train(6, cut=True)
    every = {"every_n_epochs": 1} if when == "epochs' ends" else {"every_n_train_steps": 1}
    saves = lightning.pytorch.callbacks.ModelCheckpoint(
        dirpath=tmp_path, filename="{step}", save_top_k=-1, auto_insert_metric_name=False, **every
    )

    def data() -> DataLoader:
        return Resumable(TensorDataset(*part()), batch_size=MICRO) if when == "all steps" else loader()

    callbacks = [GrowingBatchCallback(Planned(PLAN)), saves]
    fit(lightning, module_of(lightning), callbacks, data=data(), enable_checkpointing=True)
    files = {int(file.stem): file for file in tmp_path.glob("*.ckpt")}
    assert sorted(files) == (hand.ends if when == "epochs' ends" else [*range(1, hand.controller.steps + 1)])
    for step in range(1, hand.controller.steps) if when == "all steps" else hand.ends[:-1]:
        growing, module = GrowingBatchCallback(Planned(PLAN)), module_of(lightning)
        trainer = fit(lightning, module, [growing], ckpt=files[step], data=data())
        assert trainer.current_epoch == 6
        assert_same(module.net, growing.controller, hand)
        assert trainer.fit_loop.epoch_loop._batches_that_stepped == hand.controller.steps


def test_a_step_that_was_not_complete_begins_again(lightning: Any, tmp_path: Path) -> None:
    """Saved at validation after six micro-batches: 1, 1, 3 and the first of three, which is lost with its gradient."""
    saves = lightning.pytorch.callbacks.ModelCheckpoint(dirpath=tmp_path, save_top_k=-1, save_on_train_epoch_end=False)
    options = {"limit_val_batches": 1.0, "val_check_interval": 6, "max_epochs": 1}
    data, rule = Resumable(TensorDataset(*part()), batch_size=MICRO), Planned({2: 3})
    callbacks = [GrowingBatchCallback(rule), saves]
    fit(lightning, module_of(lightning), callbacks, data=data, enable_checkpointing=True, **options)
    (file,) = tmp_path.glob("*step=3.ckpt")
    growing, again = GrowingBatchCallback(rule), Resumable(TensorDataset(*part()), batch_size=MICRO)
    trainer = fit(lightning, module_of(lightning), [growing], ckpt=file, data=again, **options)
    assert growing.controller.examples == EXAMPLES - MICRO
    assert growing.controller.steps == 3 + 4  # of 3, 3, 3 and 1
    assert trainer.global_step == trainer.fit_loop.epoch_loop._batches_that_stepped == 7


def test_hears_the_noise_scale(lightning: Any) -> None:
    rule, noise = "with the noise scale", NoiseCallback(every=1, source="examples")
    growing, module = GrowingBatchCallback(rule, noise=noise, scale="linear"), module_of(lightning, "lambda")
    fit(lightning, module, [growing, noise], max_epochs=8)  # whatever their order
    hand = ByHand("lambda", rule=rule, scale="linear", most=16 * MICRO)
    hand.noise = bs.NoiseMonitor(hand.model, optimizer=hand.controller.optimizer, every=1, source="examples")
    hand.train(8, cut=True)
    assert growing.controller.changes == hand.controller.changes != []
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), hand.weights(), strict=True))


def test_hears_what_validation_logs(lightning: Any) -> None:
    """Twice an epoch, in the middle of a step too; not what the sanity check finds."""
    seen: list[float] = []

    class Reads(lightning.pytorch.Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if not trainer.sanity_checking:
                seen.append(float(trainer.callback_metrics["val_loss"]))

    rule = Planned(PLAN)
    growing = GrowingBatchCallback(rule, monitor="val_loss")
    checked = {"limit_val_batches": 1.0, "val_check_interval": 0.5, "max_epochs": 3}
    fit(lightning, module_of(lightning), [growing, Reads()], **checked)
    assert len(seen) == 6
    assert rule.heard == []  # that of a run is a copy
    assert growing.controller.rule.heard == seen[: len(growing.controller.rule.heard)]
    assert len(growing.controller.rule.heard) >= 4  # a step of a whole epoch sees the last of two
    with pytest.raises(UsageError, match="expected a metric 'accuracy' that validation logs, got val_loss"):
        fit(lightning, module_of(lightning), [GrowingBatchCallback(Planned(PLAN), monitor="accuracy")], **checked)


def test_every_change_is_logged_with_its_reason(lightning: Any) -> None:
    told: list[tuple[int, dict[str, float]]] = []
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    class Logger(lightning.pytorch.loggers.logger.DummyLogger):
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            told.append((step or 0, metrics))

    growing = GrowingBatchCallback(Planned(PLAN))
    theirs, handler = logging.getLogger("lightning.pytorch"), Lines()
    theirs.addHandler(handler)
    try:
        fit(lightning, module_of(lightning), [growing], logger=Logger())
    finally:
        theirs.removeHandler(handler)
    changes, lines = growing.controller.changes, [line for line in lines if "batch size" in line]
    assert lines == [str(change) for change in changes]
    assert f"step 2 (4 examples): batch size 2 -> 6, accumulation 3, lr {changes[0].learning_rate:.4g}" in lines[0]
    assert lines[0].endswith("planned for step 2")
    assert [(s, m) for s, m in told if "batch_size" in m] == [(c.step, {"batch_size": c.after}) for c in changes]


def test_ends_with_its_examples(lightning: Any) -> None:
    growing = GrowingBatchCallback(Planned(PLAN), examples=40)
    trainer = fit(lightning, module_of(lightning), [growing], max_epochs=-1)
    assert 40 <= growing.controller.examples < 40 + growing.controller.batch_size
    assert growing.controller.steps == trainer.global_step


def test_schedules_of_epochs_and_metrics_stay_with_trainer(lightning: Any) -> None:
    module = module_of(lightning, "lambda", interval="epoch")
    fit(lightning, module, [GrowingBatchCallback(Planned(PLAN), scale="held")], max_epochs=3)
    by_epoch = [0.1 / (1 + 0.1 * t) for t in range(3)]
    assert sorted(set(module.rates), reverse=True) == pytest.approx(by_epoch)
    growing = GrowingBatchCallback(Planned({2: 4}), scale="linear")
    module = module_of(lightning, "plateau", interval="epoch")
    fit(lightning, module, [growing], limit_val_batches=1.0, max_epochs=2)
    assert set(module.rates) == {0.1, 0.4}


def test_a_step_that_breaks_off_counts_for_nothing(lightning: Any) -> None:
    """The module leaves epochs before the eighth micro-batch: after 1, 1 and 3, and 2 lost; after 3, 3, and 1 lost."""
    growing, module = GrowingBatchCallback(Planned({2: 3})), module_of(lightning)
    module.before = 7
    fit(lightning, module, [growing], max_epochs=2)
    assert growing.controller.steps == 5
    assert growing.controller.examples == (1 + 1 + 3 + 3 + 3) * MICRO


def test_a_run_that_fails_leaves_the_accumulation_as_it_was(lightning: Any) -> None:
    made = lightning.Trainer(**QUIET, max_epochs=2, callbacks=[GrowingBatchCallback(Planned(PLAN))])
    module = module_of(lightning)
    module.fail_at = 3
    with pytest.raises(ArithmeticError):
        made.fit(module, loader(), loader())
    assert (type(made.accumulate_grad_batches), made.accumulate_grad_batches) == (int, 1)


def test_what_is_refused(lightning: Any) -> None:
    with pytest.raises(UsageError, match="expected the NoiseCallback that measures the noise scale, got none"):
        GrowingBatchCallback("with the noise scale")
    with pytest.raises(UsageError, match="expected the name of a metric that validation logs, got none"):
        GrowingBatchCallback("on plateau")
    planned = GrowingBatchCallback(Planned(PLAN))
    with pytest.raises(UsageError, match="got one that hears nothing"):
        fit(lightning, module_of(lightning), [GrowingBatchCallback(Planned(PLAN), noise=NoiseCallback())])
    with pytest.raises(UsageError, match="interval 'step' and frequency 1, got 'epoch' and 1"):
        fit(lightning, module_of(lightning, interval="epoch"), [planned])
    with pytest.raises(UsageError, match="got max_steps=5, of batches that grow"):
        fit(lightning, module_of(lightning), [planned], max_steps=5)
    theirs = lightning.pytorch.callbacks.GradientAccumulationScheduler({0: 1, 1: 2})
    with pytest.raises(UsageError, match="got GradientAccumulationScheduler: leave one of the two out"):
        fit(lightning, module_of(lightning), [planned, theirs])
    by_hand = module_of(lightning, schedule=None)
    by_hand.automatic_optimization = False
    with pytest.raises(UnsupportedTask, match="expected automatic optimization, got manual"):
        fit(lightning, by_hand, [planned])
    pairs = TensorDataset(*(t[:30].unflatten(0, (15, 2)) for t in part()))
    several = DataLoader(pairs, batch_size=2, collate_fn=lambda rows: [torch.cat(t) for t in zip(*rows, strict=True)])
    with pytest.raises(
        UsageError, match="expected micro-batches of up to 2 examples, the loader's batch_size, got one"
    ):
        fit(lightning, module_of(lightning), [planned], data=several)
    growing = GrowingBatchCallback(Planned({}), micro_batch_size=4)
    fit(lightning, module_of(lightning), [growing], data=several, max_epochs=1)
    assert growing.controller.examples == 8 * 4
    with pytest.raises(UsageError, match="expected a train loader with a batch_size, got list"):
        fit(lightning, module_of(lightning), [planned], data=list(loader()))


TWO_PROCESSES = """
from test_lightning_growing import *
import lightning
growing, module = GrowingBatchCallback(Planned(PLAN)), module_of(lightning)
fit(lightning, module, [growing], data=loader(2), strategy="ddp", devices=2)
hand = ByHand(of=2, most=8 * MICRO * 2).train(6, cut=True)
assert_same(module.net, growing.controller, hand, rtol=1e-5)
torch.distributed.destroy_process_group()
print("as expected", flush=True)
"""


def test_two_processes(lightning: Any, tmp_path: Path) -> None:
    """Each half of the data: as one process that takes both halves' micro-batches together."""
    assert_as_expected(TWO_PROCESSES, tmp_path)
