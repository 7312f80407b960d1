"""Does the adapter show the monitor the gradients that Transformers' Trainer makes? The real Trainer, exact numbers."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest
import torch
from exact import EXAMPLES, assert_saw, data, hooks_in, last_loss, left_behind, network, seed
from torch import nn
from two_processes import assert_as_expected

from batchscope.errors import CannotAnswer, UsageError
from batchscope.integrations.transformers import NoiseCallback

QUIET: dict[str, Any] = {
    "use_cpu": True,
    "report_to": [],
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "save_strategy": "no",
    "logging_strategy": "no",
}


@pytest.fixture(scope="module")
def transformers() -> Any:
    pytest.importorskip("accelerate")
    return pytest.importorskip("transformers")


class Model(nn.Module):
    """Returns its loss, as Trainer wants it."""

    def __init__(self, dropout: float = 0.0, fail_at: int | None = None) -> None:
        super().__init__()
        self.net, self.dropout, self.fail_at, self.calls = network(), nn.Dropout(dropout), fail_at, 0

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls += 1
        if self.fail_at is not None and self.calls > self.fail_at:
            raise ArithmeticError
        output = self.net(self.dropout(x))
        return {"loss": nn.functional.cross_entropy(output, labels), "logits": output}


def train(transformers: Any, folder: Path, model: nn.Module, callbacks: list[Any], **arguments: Any) -> Any:
    """Twelve epochs, each of one step unless `arguments` say otherwise, the examples in order."""

    class Trainer(transformers.Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    given = {
        "per_device_train_batch_size": EXAMPLES,
        "num_train_epochs": 12,
        "learning_rate": 0.0,
        "max_grad_norm": 1e-3,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        **arguments,
    }
    settings = transformers.TrainingArguments(output_dir=str(folder), **QUIET, **given)
    rows = [{"x": x, "labels": y} for x, y in zip(*data(), strict=True)]
    trainer = Trainer(model=model, args=settings, train_dataset=rows, callbacks=callbacks)
    trainer.train()
    return trainer


@pytest.mark.parametrize(("source", "parts"), [(None, EXAMPLES), ("parts", 2)])
@pytest.mark.parametrize("clip", [1e-3, 0.0])
def test_one_batch_a_step_before_it_is_clipped(
    transformers: Any, tmp_path: Path, source: str | None, parts: int, clip: float
) -> None:
    """Clipped to a thousandth, by Trainer, before its event; monitored as the backward pass left it."""
    noise, model = NoiseCallback(every=1, source=source), Model()
    trainer = train(transformers, tmp_path, model, [noise], max_grad_norm=clip)
    report = noise.report()
    assert_saw(report, source or "examples", parts, last_loss())
    assert report.steps == trainer.state.global_step == 12
    assert {m.learning_rate for m in report.measurements} == {0.0}
    assert not hooks_in(model)


def test_accumulated_micro_batches_are_the_parts(transformers: Any, tmp_path: Path) -> None:
    noise, model = NoiseCallback(every=1), Model()
    several = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}
    trainer = train(transformers, tmp_path, model, [noise], **several)
    assert_saw(noise.report(), "micro-batches", 4)
    assert noise.monitor.steps == trainer.state.global_step == 12
    assert not hooks_in(model)


def test_a_loss_divided_by_counted_tokens(transformers: Any, tmp_path: Path) -> None:
    """Language models are given `num_items_in_batch`, what all micro-batches of a step count: a sum over that is
    their mean, with equal micro-batches."""

    class Counting(Model):
        def forward(self, x: torch.Tensor, labels: torch.Tensor, num_items_in_batch: Any = None, **_: Any) -> Any:
            output = self.net(x)
            loss = nn.functional.cross_entropy(output, labels, reduction="sum") / num_items_in_batch
            return {"loss": loss, "logits": output}

    noise = NoiseCallback(every=1)
    several = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}
    train(transformers, tmp_path, Counting(), [noise], **several)
    assert_saw(noise.report(), "micro-batches", 4)


def test_a_model_of_transformers_own(transformers: Any, tmp_path: Path) -> None:
    """Its output is an object; position embeddings are one for all examples, so the batch is compared in halves."""
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    seed()
    config = transformers.BertConfig(vocab_size=64, max_position_embeddings=8, num_labels=3, **shape)
    model = transformers.BertForSequenceClassification(config)
    tokens = torch.randint(64, (64, 8), generator=torch.Generator().manual_seed(3))
    rows = [{"input_ids": row, "labels": row[0] % 3} for row in tokens]
    asked = {"max_steps": 40, "per_device_train_batch_size": 16}
    settings = transformers.TrainingArguments(output_dir=str(tmp_path), **QUIET, **asked)
    noise = NoiseCallback(every=1)
    transformers.Trainer(model=model, args=settings, train_dataset=rows, callbacks=[noise]).train()
    report = noise.report()
    assert (report.source, report.batch_size) == ("parts", 16.0)
    assert "position_embeddings" in report.notes[0]
    assert len(report.measurements) > 30
    assert all(m.parts_squared > m.mean_squared > 0 and m.loss for m in report.measurements)
    assert "classifier" in report.layers
    assert not hooks_in(model)


def test_what_a_monitored_run_leaves_is_what_an_unmonitored_one_leaves(transformers: Any, tmp_path: Path) -> None:
    """With dropout and clipping, at the default cadence and at every step: the same bits."""
    left = []
    for callbacks in ([], [NoiseCallback()], [NoiseCallback(every=1)], [NoiseCallback(every=1, source="parts")]):
        model = Model(dropout=0.2)
        seed()
        train(transformers, tmp_path, model, callbacks, learning_rate=0.3, per_device_train_batch_size=8)
        assert not hooks_in(model)
        left.append(left_behind(model))
    assert left[0] == left[1] == left[2] == left[3]


def test_a_run_that_fails_leaves_its_hooks_until_they_are_removed(transformers: Any, tmp_path: Path) -> None:
    """Trainer has no event for it: `remove`, or the next run, takes them out."""
    noise, model = NoiseCallback(every=1), Model(fail_at=9)
    with pytest.raises(ArithmeticError):
        train(transformers, tmp_path, model, [noise])
    noise.remove()
    assert not hooks_in(model)
    assert noise.report().steps == 9
    with pytest.raises(ArithmeticError):
        train(transformers, tmp_path, model := Model(fail_at=9), [noise])
    train(transformers, tmp_path, Model(), [noise])
    assert not hooks_in(model)


def test_what_is_refused(transformers: Any) -> None:
    with pytest.raises(CannotAnswer, match="expected a training run before `report`"):
        NoiseCallback().report()
    one = {"n_gpu": 1, "world_size": 1, "max_grad_norm": 0.0, "gradient_accumulation_steps": 1}
    several, scaled = types.SimpleNamespace(**{**one, "n_gpu": 4}), types.SimpleNamespace(**{**one, "world_size": 2})
    now = {"model": network(), "optimizer": types.SimpleNamespace(scaler=None)}
    with pytest.raises(UsageError, match=r"expected one device in each process, got 4 in this one"):
        NoiseCallback().on_train_begin(several, None, None, **now)
    now["optimizer"] = types.SimpleNamespace(scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(UsageError, match=r"expected gradients without a loss scale under data parallelism, got fp16"):
        NoiseCallback().on_train_begin(scaled, None, None, **now)


TWO_PROCESSES = """
from test_transformers_noise import *
import transformers
noise, model = NoiseCallback(every=1), Model()
several = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
train(transformers, Path.cwd(), model, [noise], max_grad_norm=0.0, **several)
assert_saw(noise.report(), "replicas", 4)
assert noise.monitor.steps == 12 and not hooks_in(model)
try:
    train(transformers, Path.cwd(), Model(), [NoiseCallback()])
except UsageError as error:
    assert "max_grad_norm=0" in str(error)
    torch.distributed.destroy_process_group()
    print("as expected", flush=True)
"""


def test_two_processes(transformers: Any, tmp_path: Path) -> None:
    """Each half of the data in two micro-batches: four parts; clipping is refused."""
    assert_as_expected(TWO_PROCESSES, tmp_path)
