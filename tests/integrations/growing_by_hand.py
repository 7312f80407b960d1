"""How would one write a growing batch by hand? The loop that the frameworks' are held to, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any

import torch
from exact import data, network
from torch import nn
from torch.optim import lr_scheduler

import batchscope as bs

MICRO, EXAMPLES = 2, 31  # 16 micro-batches an epoch, the last of one example
SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 60, eta_min=0.001),  # from the rate before
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + 0.1 * t)),  # from the first rate
}


class Planned:
    """After so many steps, so many times the first batch: not powers of two, which would end where others begin."""

    name, may_shrink = "planned", True

    def __init__(self, plan: dict[int, int]) -> None:
        self.plan = plan
        self.heard: list[float] = []

    def wanted(self, seen: Any) -> tuple[float, str] | None:
        if seen.loss == seen.loss:
            self.heard.append(seen.loss)
        times = self.plan.get(seen.step)
        return (times * seen.first_batch_size, f"planned for step {seen.step}") if times else None

    def state_dict(self) -> dict[str, Any]:
        return {"heard": self.heard}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.heard = state["heard"]


PLAN = {2: 3, 5: 5, 7: 4, 9: 7, 11: 30}


def part(number: int = 0, of: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """What one of so many processes trains on."""
    x, y = (tensor[:EXAMPLES] if of == 1 else tensor.chunk(of)[number] for tensor in data())
    return x, y


def micro_batches(of: int = 1) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """An epoch in order; of several processes, what they train on at the same time."""
    pieces = [zip(*(t.split(MICRO) for t in part(number, of)), strict=True) for number in range(of)]
    for at_once in zip(*pieces, strict=True):
        xs, ys = zip(*at_once, strict=True)
        yield torch.cat(xs), torch.cat(ys)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


class ByHand:
    """A plain loop with a controller; where `cut`, it steps at the end of an epoch, with what has been accumulated."""

    def __init__(self, schedule: str | None = "cosine", accumulation: int = 1, of: int = 1, **controller: Any) -> None:
        self.model, self.of = network(), of
        optimizer = optimizer_of(self.model)
        made = SCHEDULES[schedule](optimizer) if schedule else None
        size = MICRO * accumulation * of
        self.controller = bs.BatchSizeController(
            optimizer,
            **{
                "batch_size": size,
                "micro_batch_size": MICRO * of,
                "scheduler": made,
                "rule": Planned(PLAN),
                **controller,
            },
        )
        self.noise: bs.NoiseMonitor | None = None
        self.ends: list[int] = []  # steps made at the end of each epoch, where it is cut

    def step(self, batches: list[Any]) -> None:
        optimizer = self.controller.optimizer
        optimizer.zero_grad()
        for x, y in batches:
            (nn.functional.cross_entropy(self.model(x), y) / len(batches)).backward()
        if self.noise is not None:
            self.noise.step(examples=sum(len(x) for x, _ in batches))
        optimizer.step()
        self.controller.step(noise_scale=self.noise, examples=sum(len(x) for x, _ in batches))

    def train(self, epochs: int, cut: bool) -> ByHand:
        flows = [micro_batches(self.of) for _ in range(epochs)]
        for flow in flows if cut else [chain.from_iterable(flows)]:
            while batches := list(islice(flow, self.controller.accumulation)):
                if cut or len(batches) == self.controller.accumulation:
                    self.step(batches)
            self.ends.append(self.controller.steps)
        return self

    def weights(self) -> list[torch.Tensor]:
        return [p.detach() for p in self.model.parameters()]


def assert_same(model: nn.Module, controller: bs.BatchSizeController, hand: ByHand, rtol: float = 0.0) -> None:
    """The same changes for the same reasons, the same learning rates, the same weights."""
    assert len(controller.changes) > 2
    assert controller.changes == hand.controller.changes
    state, expected = controller.state_dict(), hand.controller.state_dict()
    assert state == expected
    for mine, theirs in zip(model.parameters(), hand.weights(), strict=True):
        assert torch.equal(mine, theirs) if rtol == 0 else torch.allclose(mine, theirs, rtol=rtol, atol=rtol)
