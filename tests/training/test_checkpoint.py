"""A trial that is stopped at any evaluation and goes on from its checkpoint is the same bits as one that was not."""

import errno
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler as schedules

from batchscope.errors import StoreError
from batchscope.training.checkpoint import Checkpoint, Position
from batchscope.training.loop import Evaluator, train
from toys import CPU, SIZE, Augmented, examples, mlp, mlp_with_state, sgd, toy, trial


class Stopped(BaseException):
    """What a kill does, as far as a test can: nothing in the loop may catch it."""


def adam(model, lr):
    return torch.optim.AdamW(model.parameters(), lr=lr / 5, weight_decay=0.1)


def warm_then_cosine(optimizer, steps):
    return schedules.SequentialLR(
        optimizer, [schedules.LinearLR(optimizer, total_iters=3), schedules.CosineAnnealingLR(optimizer, steps)], [3]
    )


def own_collate(items):
    """Draws from all generators, as masked language modelling does."""
    x, y = torch.utils.data.default_collate(items)
    return x + 0.1 * torch.rand(1) + 0.1 * float(np.random.rand()), y


class Hidden(nn.Module):
    """A running mean that is not in the state_dict, and a loss that depends on it."""

    def __init__(self):
        super().__init__()
        self.net = mlp()
        self.register_buffer("mean", torch.zeros(3), persistent=False)

    def forward(self, x):
        output = self.net(x)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * output.detach().mean(0)
        return output - self.mean


CASES = {
    "momentum, dropout, batch norm": {},
    "batch of 8 and 6": {"train": examples(SIZE), "batch": 8, "test": examples(9)},
    "one example": {"model": mlp, "batch": 1, "cadence": 13},
    "cosine": {"schedule": schedules.CosineAnnealingLR},
    "one cycle, momentum too": {"schedule": lambda o, n: schedules.OneCycleLR(o, 0.1, total_steps=n)},
    "milestones": {"schedule": lambda o, n: schedules.MultiStepLR(o, [n // 3, n // 2]), "optimizer": adam},
    "lambda with numpy": {"schedule": lambda o, n: schedules.LambdaLR(o, lambda s: np.cos(s / n))},
    "warm-up, then cosine": {"schedule": warm_then_cosine, "optimizer": adam},
    "augmented data set": {"train": Augmented(), "optimizer": adam},
    "augmented data set, worker": {"train": Augmented(), "num_workers": 1, "collate_fn": own_collate, "seldom": True},
    "hidden buffer": {"model": Hidden},
    "accumulation": {"micro": 3, "model": mlp},
    "bf16": {"precision": "bf16"},
}


@pytest.mark.parametrize("name", CASES)
def test_stopped_at_every_evaluation_and_resumed_is_the_same_bits(name, tmp_path):
    """Cadence 7 examples at batch 7 of 46: evaluations in mid-epoch, and at the end of every epoch."""
    case = {"batch": 7, "cadence": 7, "micro": None, "seldom": False, "precision": "fp32"} | CASES[name]
    batch, cadence, micro, seldom, precision = (
        case.pop(k) for k in ("batch", "cadence", "micro", "seldom", "precision")
    )
    task = toy(**{"model": mlp_with_state, "precision": precision} | case)
    cadence = 3 * cadence if seldom else cadence
    spec = trial(batch, seed=2, budget=2 * SIZE + 20, cadence=cadence, micro=micro, precision=precision)
    evaluator = Evaluator(task, CPU)
    straight = train(task, spec, device=CPU, evaluator=evaluator)
    assert straight.outcome == "not_reached", straight.reason
    stops = 0

    for _ in range(len(straight.trace) + 2):
        left = [0] * (1 if (tmp_path / "a.pt").exists() else 2)  # the first one at the start, and one to be saved

        def stop_at_the_last(line, left=left):
            if not left:
                raise Stopped
            left.pop()

        try:
            resumed = train(
                task,
                spec,
                device=CPU,
                evaluator=evaluator,
                on_evaluation=stop_at_the_last,
                checkpoint=Checkpoint(tmp_path / "a.pt", seconds=0),
            )
        except Stopped:
            stops += 1
            torch.manual_seed(99)  # a new process knows nothing of the old one's generators
            np.random.seed(99)
        else:
            break
    assert stops == len(straight.trace) - 2
    assert repr(resumed.trace) == repr(straight.trace)
    assert (resumed.steps, resumed.examples, resumed.initial_norm) == (
        straight.steps,
        straight.examples,
        straight.initial_norm,
    )
    assert (resumed.outcome, resumed.ended_by, resumed.test) == (straight.outcome, straight.ended_by, straight.test)


def saved(path, spec=None):
    """A checkpoint after some training, the objects in it, and their parts."""
    model = mlp_with_state()
    optimizer = sgd(model, 0.1)
    F.cross_entropy(model(torch.randn(4, 5)), torch.zeros(4, dtype=torch.long)).backward()
    optimizer.step()
    parts = {"model": model, "optimizer": optimizer}
    checkpoint = Checkpoint(path, seconds=0)
    checkpoint.save(spec or trial(), Position(3, 24, 0, 3), parts)
    return checkpoint, parts


def fresh():
    model = mlp_with_state()
    return {"model": model, "optimizer": sgd(model, 0.1)}


def test_a_file_that_is_of_no_use_counts_as_none_and_touches_nothing(tmp_path):
    checkpoint, _ = saved(tmp_path / "a.pt")
    assert checkpoint.load(trial(), fresh()).step == 3
    whole = checkpoint.path.read_bytes()
    parts = fresh()
    weights, other = parts["model"][0].weight.clone(), torch.get_rng_state()
    assert checkpoint.load(trial(seed=1), parts) is None
    assert checkpoint.load(trial(lr=0.06), parts) is None
    damaged = [
        b"",
        b"PK",
        b"garbage" * 99,
        whole[:-1],
        whole[: len(whole) // 2],
        b"\x80\x02.",
        b"\x80\x02]q\x00.",
        b"((((",
    ]
    for content in damaged:
        checkpoint.path.write_bytes(content)
        assert checkpoint.load(trial(), parts) is None, content[:20]
    torch.save([1, 2], checkpoint.path)
    assert checkpoint.load(trial(), parts) is None
    checkpoint.path.unlink()
    assert checkpoint.load(trial(), parts) is None
    assert torch.equal(torch.get_rng_state(), other)
    assert torch.equal(parts["model"][0].weight, weights)


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"key": trial().key(), "parts": Evil()}, tmp_path / "a.pt")
    assert Checkpoint(tmp_path / "a.pt").load(trial(), fresh()) is None
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_is_a_store_error_and_leaves_the_old_file(tmp_path, monkeypatch):
    checkpoint, parts = saved(tmp_path / "a.pt")
    old = checkpoint.path.read_bytes()

    def full(state, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    for error in (full, lambda *_: (_ for _ in ()).throw(RuntimeError("PytorchStreamWriter failed writing file"))):
        monkeypatch.setattr(torch, "save", error)
        with pytest.raises(StoreError, match=r"expected to write a checkpoint at .*: free some space"):
            checkpoint.save(trial(), Position(4), parts)
    assert checkpoint.path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]
    no_memory = RuntimeError("CUDA out of memory")
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(no_memory))
    with pytest.raises(RuntimeError, match="out of memory"):
        checkpoint.save(trial(), Position(4), parts)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_disk_that_is_really_full(tmp_path, monkeypatch):
    checkpoint, parts = saved(tmp_path / "a.pt")
    (tmp_path / f"a.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(StoreError, match="free some space"):
        checkpoint.save(trial(), Position(4), parts)
    assert checkpoint.load(trial(), fresh()).step == 3


def test_a_kill_while_writing_leaves_the_old_file_and_remove_clears_up(tmp_path, monkeypatch):
    checkpoint, parts = saved(tmp_path / "a.pt")
    write = torch.save

    def killed(state, path):
        write(state, path)
        path.write_bytes(path.read_bytes()[:1000])
        raise Stopped

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(Stopped):
        checkpoint.save(trial(), Position(9), parts)
    assert checkpoint.load(trial(), fresh()).step == 3
    (tmp_path / "b.1.tmp").touch()
    checkpoint.remove()
    assert [p.name for p in tmp_path.iterdir()] == ["b.1.tmp"]  # another trial's


def test_what_cannot_be_written_costs_the_checkpoint_and_not_the_trial(tmp_path):
    class Odd(torch.optim.SGD):
        def state_dict(self):
            return super().state_dict() | {"odd": lambda: 0}

    task = toy(optimizer=lambda model, lr: Odd(model.parameters(), lr=lr))
    checkpoint = Checkpoint(tmp_path / "a.pt", seconds=0)
    assert train(task, trial(), device=CPU, checkpoint=checkpoint).ended_by == "budget"
    assert list(tmp_path.iterdir()) == []


def test_it_is_due_by_its_own_clock_only(tmp_path):
    assert Checkpoint(tmp_path / "a.pt", seconds=0).due()
    assert not Checkpoint(tmp_path / "a.pt", seconds=60).due()
