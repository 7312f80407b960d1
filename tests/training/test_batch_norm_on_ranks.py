"""Does synchronised batch norm see what one device would: same outputs, gradients, running statistics?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_distributed import bits, resumed, trained
from torch import nn

from batchscope.errors import CannotAnswer, TaskError
from batchscope.measure.coupling import replica_norms
from batchscope.measure.scaling import GroupClock
from batchscope.records import Engine
from batchscope.task import Task
from batchscope.training import batch_norm
from batchscope.training.distributed import Replicas, refuse
from batchscope.training.fingerprint import changed, fingerprint
from batchscope.training.in_step import InStep
from batchscope.training.step import make_shared_model, make_shared_step
from ranks import on_ranks
from toys import CPU, SIZE, examples, mlp_with_state, sgd, toy

pytestmark = pytest.mark.processes

RANKS = 3
SIZES = (11, 7, 2)  # of batches: ragged parts, and a rank without any
STEPS = 2


def mlp_with_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


class Images(nn.Module):
    """Batch norm over images: evenly averaged statistics, none kept, no weights, in eval mode, and a buffer besides."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4, momentum=None),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3),
            nn.BatchNorm2d(4, track_running_stats=False),
            nn.Conv2d(4, 3, 3),
            nn.BatchNorm2d(3, affine=False),
            nn.BatchNorm2d(3).eval(),
        )
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return self.layers(x).mean((2, 3))


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    """Three to an example, of which the first examples count one, two or three."""
    x, y = torch.randint(5, (SIZE, 3)), torch.randint(3, (SIZE, 3))
    for i in range(max(SIZES)):
        y[i, 1 + i % 3 :] = -100
    return x, y


def word_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.embed(x).transpose(1, 2)).transpose(1, 2))


def cases() -> dict[str, tuple[Task, list[int | None]]]:
    """Tasks with synchronised batch norm, and the micro-batch sizes at which every pass can be normalised."""
    torch.manual_seed(1)
    images = torch.randn(SIZE, 1, 8, 8), torch.randint(3, (SIZE,))
    words: dict[str, Any] = {"unit": "tokens", "train": tokens(), "valid": tokens(), "metrics": {}, "loss": word_loss}
    together: dict[str, Any] = {"batch_norm": "synchronised", "optimizer": sgd}
    return {
        "plain": (toy(model=mlp_with_norm, **together), [None, 2]),
        "images": (toy(model=Images, train=images, valid=images, **together), [None, 1]),
        "tokens": (toy(model=Words, **words, **together), [None, 2]),
        "bf16": (toy(model=mlp_with_norm, precision="bf16", **together), [None]),
    }


State = dict[str, torch.Tensor]


def states_of_a_rank(replicas: Replicas) -> dict[tuple[str, int | None, int], State]:
    """The model's state after some steps, for every case, micro-batch size and batch size."""
    found = {}
    for name, (task, micros) in cases().items():
        for micro in micros:
            for size in SIZES:
                torch.manual_seed(0)
                model = make_shared_model(task, CPU, Engine(), replicas)
                how: dict[str, Any] = {"micro_batch_size": micro, "precision": task.precision}
                step = make_shared_step(task, model, task.optimizer(model, 0.1), replicas, **how)
                whole = tuple(t[:size] for t in task.train)
                part = tuple(t[replicas.part(size)] for t in whole)
                for _ in range(STEPS):
                    step(part if len(part[0]) > 0 else None, size)
                found[name, micro, size] = model.state_dict()
    return found


def state_of_one_device(task: Task, size: int, micro: int | None) -> State:
    """The same by a loop over passes, each with the examples that all ranks have in it, side by side."""
    torch.manual_seed(0)
    model = task.model()
    optimizer = task.optimizer(model, 0.1)
    parts = [list(range(r * size // RANKS, (r + 1) * size // RANKS)) for r in range(RANKS)]
    largest = max(map(len, parts))
    passes = -(-largest // (micro or largest))
    x, y = task.train
    total = int((y[:size] != -100).sum())
    for _ in range(STEPS):
        optimizer.zero_grad()
        for k in range(passes):
            seen = [i for part in parts for i in part[k * len(part) // passes : (k + 1) * len(part) // passes]]
            n = int((y[seen] != -100).sum())
            with torch.autocast("cpu", torch.bfloat16, enabled=task.precision == "bf16"):
                (task.batch_loss(model, (x[seen], y[seen])) * (n / total)).backward()
        optimizer.step()
    return model.state_dict()


def trials_of_a_rank(replicas: Replicas, folder: str) -> dict[str, Any]:
    """Whole ones."""
    return {
        "together": trained(replicas, synchronised_task, 10),
        "apart": trained(replicas, task_apart, 10),
        "resumed": resumed(replicas, folder, stateful),
        "resumed apart": resumed(replicas, f"{folder}/apart", stateful_apart),
    }


def synchronised_task() -> Task:
    return toy(model=mlp_with_norm, batch_norm="synchronised")


def task_apart() -> Task:
    return toy(model=mlp_with_norm)


def stateful() -> Task:
    return toy(model=mlp_with_state, test=examples(10, seed=2), batch_norm="synchronised")


def stateful_apart() -> Task:
    return toy(model=mlp_with_state, test=examples(10, seed=2))


def without_units(replicas: Replicas) -> str:
    """What is said where a rank's examples count nothing."""
    x, y = tokens()
    y[:2] = -100
    task = cases()["tokens"][0]
    task = Task(**task.__dict__ | {"train": (x, y)})
    model = make_shared_model(task, CPU, Engine(), replicas)
    try:
        make_shared_step(task, model, task.optimizer(model, 0.1), replicas).__call__((x[:2], y[:2]), 6)
    except CannotAnswer as error:
        return str(error)
    return ""


class Deep(nn.Sequential):
    """Without its norms, values of 1000 to the power of its depth: no float32 holds them."""

    def __init__(self) -> None:
        blocks = [nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.ReLU()) for _ in range(24)]
        super().__init__(*blocks, nn.Linear(5, 3))
        with torch.no_grad():
            for block in blocks:
                block[0].weight *= 1000


def deep_task() -> Task:
    return toy(model=Deep, batch_norm="synchronised", optimizer=sgd)


def of_a_deep_model(replicas: Replicas) -> State:
    """Gradients of a batch that leaves rank 0 without any example."""
    torch.manual_seed(0)
    task = deep_task()
    model = make_shared_model(task, CPU, Engine(), replicas)
    part = tuple(t[:2][replicas.part(2)] for t in task.train)
    make_shared_step(task, model, task.optimizer(model, 0.0), replicas)(part if len(part[0]) > 0 else None, 2)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def with_torchs_own(replicas: Replicas) -> bool:
    """Whether the step of a rank by itself, with layers that would ask for all of them, is finite."""
    task = toy(model=lambda: nn.SyncBatchNorm.convert_sync_batchnorm(mlp_with_norm()), batch_norm="synchronised")
    clock = GroupClock(task, CPU, "fp32", Engine(), Replicas(replicas.rank, 1, CPU))
    clock.step(tuple(t[:6] for t in task.train), 6)
    return all(bool(p.isfinite().all()) for p in clock.parameters)


def everything(replicas: Replicas, folder: str) -> tuple[Any, ...]:
    said = without_units(replicas)
    return states_of_a_rank(replicas), trials_of_a_rank(replicas, folder), said, *alone_among_others(replicas)


def alone_among_others(replicas: Replicas) -> tuple[State, bool]:
    return of_a_deep_model(replicas), with_torchs_own(replicas)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """By rank: processes take seconds to start."""
    return on_ranks(RANKS, everything, str(tmp_path_factory.mktemp("checkpoints")))


@pytest.mark.parametrize(("name", "micro"), [(n, m) for n, (_, micros) in cases().items() for m in micros])
def test_steps_are_those_of_one_device(ranks: list[tuple[Any, ...]], name: str, micro: int | None) -> None:
    """Weights, and running statistics, of batches that leave ranks with unlike numbers of examples or none."""
    task = cases()[name][0]
    near = {"rtol": 2e-2, "atol": 4e-3} if name == "bf16" else {"rtol": 1e-4, "atol": 2e-6}
    for size in SIZES:
        alone = state_of_one_device(task, size, micro)
        first = ranks[0][0][name, micro, size]
        assert list(first) == list(alone)
        for rank in ranks:
            for key, value in rank[0][name, micro, size].items():
                assert torch.equal(value, first[key]) or key == "passes", (size, key)
        for key, value in alone.items():
            if key != "passes":
                assert torch.allclose(first[key].float(), value.float(), **near), (size, key, first[key], value)


def test_a_stand_in_leaves_no_mark_on_other_buffers(ranks: list[tuple[Any, ...]]) -> None:
    """Of two examples on three ranks, the first has none."""
    assert [int(rank[0]["images", None, 2]["passes"]) for rank in ranks] == [0, STEPS, STEPS]


def test_a_trial_is_that_of_one_device(ranks: list[tuple[Any, ...]]) -> None:
    first, *others = (rank[1]["together"] for rank in ranks)
    alone = trained(None, task_apart, 10)
    assert all(bits(first.trace) == bits(other.trace) for other in others)
    for ours, theirs in zip(first.trace, alone.trace, strict=True):
        assert ours.validation["loss"] == pytest.approx(theirs.validation["loss"], rel=1e-4)
        assert ours.train["loss"] == pytest.approx(theirs.train["loss"], rel=1e-4)
        assert ours.distance == pytest.approx(theirs.distance, rel=1e-4, abs=1e-6)
    apart = ranks[0][1]["apart"]
    assert apart.trace[-1].train["loss"] != pytest.approx(alone.trace[-1].train["loss"], rel=1e-3)


@pytest.mark.parametrize("kind", ["resumed", "resumed apart"])
def test_a_resumed_trial_has_the_same_bits(ranks: list[tuple[Any, ...]], kind: str) -> None:
    """On three ranks, where a sum's rounding depends on its order."""
    whole, first, again = ranks[0][1][kind]
    assert whole.outcome != "failed", whole.reason
    assert bits(whole.trace) == bits(first.trace) == bits(again.trace)
    assert whole.test == again.test


def test_examples_that_count_nothing_are_refused(ranks: list[tuple[Any, ...]]) -> None:
    """Their loss is not a number, but their values belong into the statistics. All three ranks have only such."""
    assert all("expected examples that count units on every device, got 2" in rank[2] for rank in ranks)


def test_a_stand_in_that_overflows_spoils_no_gradient(ranks: list[tuple[Any, ...]]) -> None:
    """In a deep model with large weights. Two examples on three ranks: the first has none."""
    torch.manual_seed(0)
    task = deep_task()
    model = task.model()
    task.batch_loss(model, tuple(t[:2] for t in task.train)).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None
        for rank in ranks:
            assert torch.allclose(rank[3][name], p.grad, rtol=1e-3, atol=1e-6), name


def test_a_rank_by_itself_asks_no_other(ranks: list[tuple[Any, ...]]) -> None:
    """When it is timed so; torch's own layers ask whatever group there is."""
    assert all(rank[4] for rank in ranks)


# --- in one process ---


def test_on_one_device_the_field_changes_nothing() -> None:
    assert bits(trained(None, synchronised_task, 10).trace) == bits(trained(None, task_apart, 10).trace)


def test_the_task_is_another_one() -> None:
    """A stored trial of several replicas is not taken for one of the other kind."""
    (one, before), (other, after) = fingerprint(task_apart()), fingerprint(synchronised_task())
    assert one != other
    assert changed(before, after) == ["how replicas share the model (batch_norm, shard)"]


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_layers_keep_names_weights_and_what_they_do_alone(kind: str) -> None:
    """Outside a step, and in eval mode, no replica waits for another."""
    plain, model = mlp_with_norm(), mlp_with_norm()
    model.load_state_dict(plain.state_dict())
    weights = list(model.parameters())
    assert batch_norm.synchronised(model, torch.device(kind)) is model
    assert all(a is b for a, b in zip(model.parameters(), weights, strict=True))
    x = examples(6)[0]
    assert torch.equal(model(x), plain(x))
    with batch_norm.meeting(batch_norm.norms_of(model), None, False):
        assert torch.equal(model.eval()(x), plain.eval()(x))
    assert list(model.state_dict()) == list(plain.state_dict())


def test_an_absent_replica_sends_nothing_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA: torch's layer gets no examples, in float32, and every weight a gradient of zeros."""
    sent = []
    monkeypatch.setattr(nn.SyncBatchNorm, "forward", lambda layer, x: sent.append(x) or x * 1)
    layer = nn.BatchNorm2d(4)
    norms = batch_norm.norms_of(batch_norm.synchronised(nn.Sequential(layer), torch.device("cuda")))
    x = torch.randn(2, 4, 3, 3, requires_grad=True)
    with batch_norm.meeting(norms, None, True):
        y = layer(x.bfloat16())
    assert y.dtype == torch.bfloat16
    (0 * y.sum()).backward()
    assert [(t.shape, t.dtype) for t in sent] == [((0, 4, 3, 3), torch.float32)]
    assert all(not p.grad.any() for p in (layer.weight, layer.bias, x))


def test_a_stand_in_passes_no_gradient_back() -> None:
    """Nor values that grow from layer to layer; running statistics stay."""
    layer = nn.BatchNorm1d(4)
    norms = batch_norm.norms_of(batch_norm.synchronised(nn.Sequential(layer), CPU))
    x = 1e30 * torch.randn(2, 4)
    assert torch.allclose(norms[0].by_itself(x / 1e30), nn.BatchNorm1d(4)(x / 1e30), atol=1e-6)
    assert norms[0].by_itself(torch.full((1, 4), 1e30)).isfinite().all()
    assert not layer.running_mean.any()


def test_torchs_own_layers_are_refused_on_several_devices_unless_asked_for() -> None:
    """They would ask the other replicas in passes that nobody keeps in step. Frozen ones ask nobody."""

    def model() -> nn.Module:
        return nn.SyncBatchNorm.convert_sync_batchnorm(mlp_with_norm())

    told = r"expected no nn.SyncBatchNorm on several devices .*, got one at '1': use batch_norm=\"synchronised\""
    with pytest.raises(CannotAnswer, match=told):
        make_shared_model(toy(model=model), CPU, Engine(), Replicas(0, 2, CPU))
    with pytest.raises(CannotAnswer, match=told):
        replica_norms(toy(model=model))
    asked = toy(model=model, batch_norm="synchronised")
    assert len(batch_norm.norms_of(make_shared_model(asked, CPU, Engine(), Replicas(0, 2, CPU)))) == 1
    assert replica_norms(asked) == []
    frozen = model()
    frozen[1].eval()
    batch_norm.refuse_torchs_own("toy", frozen)


class OwnNorm(nn.BatchNorm1d):
    """Of a user's own make."""


def test_what_cannot_be_synchronised_is_refused() -> None:
    with pytest.raises(CannotAnswer, match="torch's own kinds to synchronise, got OwnNorm at '0'"):
        batch_norm.synchronised(nn.Sequential(OwnNorm(3)), CPU)
    with pytest.raises(CannotAnswer, match="no compiled engine with batch_norm="):
        refuse(synchronised_task(), 8, 2, Engine(compiled=True))
    with pytest.raises(TaskError, match='expected batch_norm "per replica" or "synchronised"'):
        toy(batch_norm="global")


def test_all_replicas_make_the_same_passes() -> None:
    for size in range(1, 24):
        for micro in (None, 1, 2, 3):
            x, task = torch.arange(size), toy()
            cut = []
            for rank in range(RANKS):
                replicas = Replicas(rank, RANKS, CPU)
                part = x[replicas.part(size)]
                passes = InStep(task, nn.Linear(1, 1), replicas, micro)
                cut.append(passes.pieces(part if len(part) > 0 else None, size))
            assert len({len(pieces) for pieces in cut}) == 1
            together = [piece for pieces in cut for piece in pieces if piece is not None]
            assert torch.equal(torch.cat(together), x)
            assert max(map(len, together)) <= (micro or size)


def test_checkpoints_are_of_the_usual_kind(ranks: list[tuple[Any, ...]], tmp_path: Path) -> None:
    """A state of synchronised layers loads into plain ones."""
    mlp_with_norm().load_state_dict(ranks[0][0]["plain", None, 11])
