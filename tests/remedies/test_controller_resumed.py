"""Does a controller go on bit for bit, and alike on all ranks?"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from controlled import SCHEDULES, Doubling, X, Y, controlled, rates
from torch.optim import lr_scheduler

import batchscope as bs
from batchscope.errors import UsageError
from batchscope.remedies.growing import OnPlateau, PowerOfSteps, Rule, WithNoiseScale
from batchscope.training.distributed import Replicas
from batchscope.training.seeding import permutation
from ranks import on_ranks
from toys import mlp_with_state


class Loop:
    """A model with dropout and batch norm under a schedule, and the controller: all that a checkpoint has to hold."""

    def __init__(self, rule: Rule) -> None:
        torch.manual_seed(0)
        self.model = mlp_with_state()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.scheduler = lr_scheduler.CosineAnnealingLR(self.optimizer, 60)
        self.controller = bs.BatchSizeController(
            self.optimizer, batch_size=8, micro_batch_size=4, most=40, rule=rule, scheduler=self.scheduler
        )
        self.sizes: list[tuple[int, float]] = []

    def train(self, steps: int) -> None:
        c = self.controller
        for _ in range(steps):
            self.sizes.append((c.batch_size, self.optimizer.param_groups[0]["lr"]))
            self.optimizer.zero_grad()
            at = permutation(0, 0, len(X)).roll(-c.examples)[: c.batch_size]
            for part in at.split(c.micro_batch_size):
                loss = F.cross_entropy(self.model(X[part]), Y[part])
                (loss / c.accumulation).backward()
            self.optimizer.step()
            c.step(loss=loss, noise_scale=10 + c.examples / 8)

    def parts(self) -> dict[str, Any]:
        names = ("model", "optimizer", "scheduler", "controller")
        return {name: getattr(self, name) for name in names}


@pytest.mark.parametrize(
    "make",
    [lambda: OnPlateau(patience=2, factor=1.5), lambda: WithNoiseScale(smoothing=0.7), lambda: PowerOfSteps(4)],
    ids=["on plateau", "with the noise scale", "power of the steps"],
)
@pytest.mark.parametrize("controller_first", [False, True])
def test_goes_on_bit_for_bit(make: Callable[[], Rule], controller_first: bool) -> None:
    whole, half = Loop(make()), Loop(make())
    whole.train(24)
    torch.manual_seed(0)
    half = Loop(make())
    half.train(11)
    file = io.BytesIO()
    torch.save({name: part.state_dict() for name, part in half.parts().items()} | {"rng": torch.get_rng_state()}, file)
    again = Loop(make())
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    for name, part in sorted(again.parts().items(), key=lambda item: (item[0] == "controller") != controller_first):
        part.load_state_dict(saved[name])
    torch.set_rng_state(saved["rng"])
    again.train(13)
    assert half.sizes + again.sizes == whole.sizes
    assert len({size for size, _ in whole.sizes}) > 2
    assert again.controller.changes == whole.controller.changes
    for a, b in zip(again.model.state_dict().values(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_what_cannot_be_loaded_changes_nothing() -> None:
    saved = controlled(Doubling(1), micro_batch_size=8)
    saved.step()
    other = controlled(Doubling(1), batch_size=12, micro_batch_size=12)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(UsageError, match=r"multiple of micro-batch x replicas \(12 x 1 = 12\), got 16"):
        other.load_state_dict(saved.state_dict())
    for make in (OnPlateau(), Doubling(1)):
        scale = "linear" if isinstance(make, Doubling) else "square root"
        with pytest.raises(UsageError, match="that was saved"):
            controlled(make, scale=scale).load_state_dict(saved.state_dict())
    assert other.state_dict() == before


def test_what_others_did_is_saved() -> None:
    ours = controlled(Doubling(2), scale="linear", schedule=SCHEDULES["lambda"])
    for _ in range(3):
        ours.optimizer.step()
        ours.step()
    for group in ours.optimizer.param_groups:
        group["lr"] /= 10
    for optimizer_first in (True, False):
        again = controlled(Doubling(2), scale="linear", schedule=SCHEDULES["lambda"])
        pairs = [(again.optimizer, ours.optimizer), (again, ours)]
        for theirs, mine in pairs if optimizer_first else pairs[::-1]:
            theirs.load_state_dict(copy.deepcopy(mine.state_dict()))
        assert rates(again) == rates(ours)
        assert again.state_dict() == ours.state_dict()


# --- several processes ---


def _decide(replicas: Replicas) -> list[tuple[int, float]]:
    """Every rank reads another noise scale and another loss."""
    controller = controlled(WithNoiseScale(smoothing=0.5), micro_batch_size=4, replicas=2, group=replicas.group)
    found = []
    for step in range(6):
        heard = (20.0 + 7 * step) * (1 + 3 * replicas.rank)
        controller.step(noise_scale=heard if step % 2 == 0 else None)
        found.append((controller.batch_size, rates(controller)[0]))
    return found


@pytest.mark.processes
def test_all_ranks_decide_alike() -> None:
    both = on_ranks(2, _decide)
    assert both[0] == both[1]
    alone = controlled(WithNoiseScale(smoothing=0.5), micro_batch_size=8)
    sizes = []
    for step in range(6):
        alone.step(noise_scale=20.0 + 7 * step if step % 2 == 0 else None)
        sizes.append(alone.batch_size)
    assert [size for size, _ in both[0]] == sizes
    assert len(set(sizes)) > 2
