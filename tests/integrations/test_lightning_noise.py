"""Does the adapter show the monitor the gradients that Lightning's Trainer makes? The real Trainer, exact numbers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from exact import EXAMPLES, assert_saw, data, hooks_in, last_loss, left_behind, network, seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from two_processes import assert_as_expected

from batchscope.errors import CannotAnswer, UnsupportedTask, UsageError
from batchscope.integrations.called import TrainingSteps
from batchscope.integrations.lightning import NoiseCallback

# Lightning's own: how it asks torch about its trees, its advice on loader workers and on a last short accumulation
OF_LIGHTNING = ("isinstance.treespec, LeafSpec", "The .* does not have many workers", "The number of training batches")
pytestmark = [pytest.mark.filterwarnings(f"ignore:.*{text}") for text in OF_LIGHTNING]
QUIET: dict[str, Any] = {
    "max_epochs": 12,
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


@pytest.fixture(scope="module")
def lightning() -> Any:
    return pytest.importorskip("lightning")


def module_of(lightning: Any, call: str, lr: float = 0.0, fail_at: int | None = None, dropout: float = 0.0) -> Any:
    """A LightningModule whose `training_step` calls `self.net`, or `self`, or the net's layers one by one.

    With "forward" it calls `self`, whose forward calls the layers one by one.
    """

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()
            if dropout:
                self.net.append(nn.Dropout(dropout))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x) if call != "forward" else self.net[2](self.net[1](self.net[0](x)))

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            x, y = batch
            if fail_at is not None and self.trainer.global_step == fail_at:
                raise ArithmeticError
            if call == "layers":
                return nn.functional.cross_entropy(self.net[2](self.net[1](self.net[0](x))), y)
            return nn.functional.cross_entropy((self.net if call == "net" else self)(x), y)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=lr)

    return Module()


def by_hand(lightning: Any, optimizers: int = 1, clip: float = 1e-3) -> Any:
    """A LightningModule that optimises by hand, and clips."""

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.automatic_optimization = network(), False

        def training_step(self, batch: Any, index: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(self.net(batch[0]), batch[1]))
            self.clip_gradients(optimizer, gradient_clip_val=clip, gradient_clip_algorithm="norm")
            optimizer.step()

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.parameters(), lr=0.0) for _ in range(optimizers)]

    return Module()


def fit(lightning: Any, module: Any, callbacks: list[Any], batch_size: int = EXAMPLES, **trainer: Any) -> Any:
    """Twelve epochs over the data in order; of two devices the first has the first half."""
    made = lightning.Trainer(**QUIET, use_distributed_sampler=False, callbacks=callbacks, **trainer)  # it would shuffle
    rank, processes = int(os.environ.get("RANK", "0")), trainer.get("devices", 1)
    mine = [tensor.chunk(processes)[rank] for tensor in data()]
    made.fit(module, DataLoader(TensorDataset(*mine), batch_size=batch_size))
    return made


@pytest.mark.parametrize(
    ("call", "source", "parts"),
    [
        ("net", None, EXAMPLES),
        ("self", None, EXAMPLES),
        ("net", "parts", 2),
        ("self", "parts", 2),
    ],
)
def test_one_batch_a_step_before_it_is_clipped(lightning: Any, call: str, source: str | None, parts: int) -> None:
    """Clipped to a thousandth, by Trainer; monitored as the backward pass left it."""
    noise = NoiseCallback(every=1, source=source)
    module = module_of(lightning, call)
    trainer = fit(lightning, module, [noise], gradient_clip_val=1e-3)
    report = noise.report()
    assert_saw(report, source or "examples", parts, last_loss())
    assert report.steps == trainer.global_step == 12
    assert {m.learning_rate for m in report.measurements} == {0.0}
    assert not hooks_in(module)


@pytest.mark.parametrize("call", ["net", "self", "layers"])
def test_accumulated_micro_batches_are_the_parts(lightning: Any, call: str) -> None:
    noise = NoiseCallback(every=1)
    fit(lightning, module_of(lightning, call), [noise], batch_size=8, accumulate_grad_batches=4)
    assert_saw(noise.report(), "micro-batches", 4, last_loss(4))


def test_every_optimiser_step_is_one_step(lightning: Any) -> None:
    """Epochs of four micro-batches, accumulated by three: two steps each; and epochs that are cut short."""
    noise = NoiseCallback(every=1)
    trainer = fit(lightning, module_of(lightning, "net"), [noise], batch_size=8, accumulate_grad_batches=3)
    assert noise.monitor.steps == trainer.global_step == 24
    cut = {"accumulate_grad_batches": 2, "limit_train_batches": 3}
    trainer = fit(lightning, module_of(lightning, "net"), [noise], batch_size=8, **cut)
    assert noise.monitor.steps == trainer.global_step == 24


def test_a_loss_scale_is_divided_out(lightning: Any) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    half = lightning.pytorch.plugins.MixedPrecision("16-mixed", "cpu", scaler)
    noise = NoiseCallback(every=1)
    fit(lightning, module_of(lightning, "net"), [noise], plugins=[half], gradient_clip_val=1e-3)
    assert_saw(noise.report(), "examples", EXAMPLES, last_loss(), rel=2e-2)  # fp16 keeps three digits


def test_optimisation_by_hand_is_seen_before_it_clips(lightning: Any) -> None:
    noise, module = NoiseCallback(every=1), by_hand(lightning)
    fit(lightning, module, [noise])
    assert_saw(noise.report(), "examples", EXAMPLES, last_loss())
    assert not hooks_in(module)


def test_the_module_of_the_users_own(lightning: Any) -> None:
    noise, module = NoiseCallback(module=lambda lit: lit.net, every=1), module_of(lightning, "self")
    fit(lightning, module, [noise])
    assert noise.monitor.model is module.net
    assert_saw(noise.report(), "examples", EXAMPLES, last_loss())


def test_the_module_that_is_called(lightning: Any) -> None:
    """Parameters keep their names where several layers are called, one after the other."""
    modules = {call: module_of(lightning, call) for call in ("self", "forward", "net", "layers")}
    monitored = {}
    for call, module in modules.items():
        noise = NoiseCallback(every=1)
        fit(lightning, module, [noise], batch_size=16, accumulate_grad_batches=2)
        monitored[call] = noise.monitor.model
    assert monitored["self"] is modules["self"]
    assert monitored["forward"] is modules["forward"]
    assert monitored["net"] is modules["net"].net
    assert isinstance(monitored["layers"], TrainingSteps)
    assert [n for n, _ in monitored["layers"].named_parameters()] == [n for n, _ in modules["self"].named_parameters()]


def test_what_a_monitored_run_leaves_is_what_an_unmonitored_one_leaves(lightning: Any) -> None:
    """With dropout and shuffled batches, at the default cadence and at every step: the same bits."""
    left = []
    for callbacks in ([], [NoiseCallback()], [NoiseCallback(every=1)], [NoiseCallback(every=1, source="parts")]):
        module = module_of(lightning, "self", lr=0.3, dropout=0.2)
        seed()
        loader = DataLoader(TensorDataset(*data()), batch_size=8, shuffle=True)
        lightning.Trainer(**QUIET, callbacks=callbacks).fit(module, loader)
        assert not hooks_in(module)
        left.append(left_behind(module))
    assert left[0] == left[1] == left[2] == left[3]


@pytest.mark.parametrize("fail_at", [0, 9])
def test_a_run_that_fails_leaves_no_hooks(lightning: Any, fail_at: int) -> None:
    noise, module = NoiseCallback(every=1), module_of(lightning, "net", fail_at=fail_at)
    with pytest.raises(ArithmeticError):
        fit(lightning, module, [noise])
    assert not hooks_in(module)


def test_what_is_refused(lightning: Any) -> None:
    with pytest.raises(CannotAnswer, match="expected a training run before `report`"):
        NoiseCallback().report()
    with pytest.raises(UnsupportedTask, match="expected one optimizer for a noise scale, got 2"):
        fit(lightning, by_hand(lightning, optimizers=2), [NoiseCallback()])
    with pytest.raises(
        UsageError, match="expected training_step to call one module that holds all trainable parameter"
    ):
        fit(lightning, module := module_of(lightning, "layers"), [NoiseCallback()])
    assert not hooks_in(module)
    with pytest.raises(UsageError, match="expected `every` in steps from 1 up, got 0"):
        fit(lightning, module_of(lightning, "net"), [NoiseCallback(every=0)])


TWO_PROCESSES = """
from test_lightning_noise import *
import lightning
for call in ("net", "self", "forward", "layers"):
    noise, module = NoiseCallback(every=1), module_of(lightning, call)
    fit(lightning, module, [noise], batch_size=8, accumulate_grad_batches=2, gradient_clip_val=1e-3,
        strategy="ddp", devices=2)
    assert_saw(noise.report(), "replicas", 4, noise.report().measurements[0].loss)
    assert noise.monitor.steps == 12 and not hooks_in(module), call
try:
    fit(lightning, by_hand(lightning), [NoiseCallback()], strategy="ddp", devices=2)
except UsageError as error:
    assert "expected automatic optimization under data parallelism, got manual" in str(error)
    torch.distributed.destroy_process_group()
    print("as expected", flush=True)
"""


def test_two_processes(lightning: Any, tmp_path: Path) -> None:
    """Each half of the data in two micro-batches: four parts; whatever `training_step` calls."""
    assert_as_expected(TWO_PROCESSES, tmp_path)
