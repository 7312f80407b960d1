"""How do N processes train one model as one would? A part of every batch for each, and the mean gradient for all.

    grad = sum_r (n_r / n) grad(mean loss of part r),        n = sum_r n_r units: examples, or counted tokens

is the gradient of the whole batch's mean loss up to float rounding, whatever the sizes of the parts: a ragged last
batch and unequal token counts included. `DistributedDataParallel` averages over the N processes (and overlaps that with
the backward pass), so every process weighs its loss by N n_r / n. Parts are consecutive examples of the same global
batch, with sizes that differ by at most one; a process whose part is empty adds zeros, and its model sees nothing.

Batch norm sees the parts, unless the task asks for it synchronised (`batch_norm.py`): replicas change the mathematics
there, and are part of the trial. Each replica keeps running statistics of its own, and those of rank 0 are evaluated
with. Dropout draws from a stream of each rank's own. A model too large for one device is sharded (`sharding.py`).

Rank 0 evaluates, decides nothing alone (every rank follows from the same trace), and writes the checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import ipaddress
import os
import socket
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from batchscope.errors import CannotAnswer
from batchscope.records import Engine
from batchscope.task import Batch, Task

PATIENCE = timedelta(minutes=30)  # that a rank waits for another; whoever started the ranks watches them (`sweep`)
HERE = "127.0.0.1"  # where ranks of one machine meet
INTERFACE, LOOPBACK = "GLOO_SOCKET_IFNAME", "lo"  # gloo's variable; Linux's name for the loopback
LossOf = Callable[[nn.Module, Batch], torch.Tensor]


@dataclass
class Replicas:
    """This process among those that train one model together."""

    rank: int
    size: int
    device: torch.device
    done: int = 0  # batches, passes, chunks evaluated: tells a rank that goes on from one that stands still
    group: dist.ProcessGroup | None = None  # of the ranks that train together; None: all
    averages: bool = True  # gradients; not, where steps are timed without it
    waiting: bool = False  # for the others, in a call below: NCCL's wait may look like work

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def part(self, examples: int) -> slice:
        """Which of the examples of a global batch are this rank's; none where there are more ranks than examples."""
        return slice(self.rank * examples // self.size, (self.rank + 1) * examples // self.size)

    def counting(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; each counts as done."""
        for batch in batches:
            self.done += 1
            yield batch

    @contextlib.contextmanager
    def _waits(self) -> Generator[None]:
        """Inside, this rank waits for the others."""
        self.waiting = True
        try:
            yield
        finally:
            self.waiting = False

    def settle(self) -> None:
        """Wait until what is queued on the device has run, and with it the others' part of it."""
        if self.device.type == "cuda":
            with self._waits():
                torch.cuda.synchronize(self.device)

    def total(self, units: int) -> int:
        """The units of all ranks' parts."""
        counted = torch.tensor(units, dtype=torch.int64, device=self.device)
        with self._waits():
            dist.all_reduce(counted, group=self.group)
            return int(counted)

    def from_lead(self, value: Any) -> Any:
        """What rank 0 hands in, on every rank."""
        held = [value]
        with self._waits():
            dist.broadcast_object_list(held, src=0, device=torch.device("cpu"))
        return held[0]

    def at_lead(self, value: Any) -> list[Any] | None:
        """What every rank hands in, by rank; None but on rank 0."""
        held: list[Any] | None = [None] * self.size if self.leads else None
        with self._waits():
            dist.gather_object(value, held, dst=0)
        return held

    def to_each(self, values: list[Any] | None) -> Any:
        """On every rank its own of the values that rank 0 hands in, by rank."""
        held: list[Any] = [None]
        with self._waits():
            dist.scatter_object_list(held, values if self.leads else None, src=0)
        return held[0]


class SharedLoss(nn.Module):
    """A model and its loss as one module, so that DDP averages the gradients of whatever the task's step calls."""

    def __init__(self, model: nn.Module, loss_of: LossOf, unused: Collection[str] = ()) -> None:
        super().__init__()
        self.model, self.loss_of = model, loss_of
        self.trained = [p for name, p in model.named_parameters() if p.requires_grad and name not in unused]

    def forward(self, batch: Batch | None) -> torch.Tensor:
        """The mean loss of a part; 0 with a gradient of zeros for none."""
        if batch is not None:
            return self.loss_of(self.model, batch)
        return sum((p.flatten()[:0].sum() for p in self.trained), torch.zeros(()))


def shared(model: nn.Module, loss_of: LossOf, replicas: Replicas, unused: Collection[str]) -> DistributedDataParallel:
    """The model's loss with its gradients averaged over the replicas; all begin with the weights of rank 0.

    `unused`: names of the weights that get no gradient, of which DDP has to be told.
    """
    together = DistributedDataParallel(
        SharedLoss(model, loss_of, unused),
        device_ids=[replicas.device.index] if replicas.device.type == "cuda" else None,
        process_group=replicas.group,
        gradient_as_bucket_view=True,
        find_unused_parameters=bool(unused),
        **buffers_apart(DistributedDataParallel),
    )
    # DDP lays out its buckets anew after a first pass: made here, so that a resumed trial adds up in the same order as
    # one that was not interrupted. From 3 replicas on, the order changes the rounding.
    together(None).backward()
    together.zero_grad()
    return together


def buffers_apart(wrapper: Callable[..., Any]) -> dict[str, Any]:
    """How this torch's DDP is told to leave every replica its own buffers as it trains.

    torch 2.13 renamed the keyword. Its own copies those of rank 0 once, at the beginning, and the older one does not:
    there they are equal as all replicas make the model from the same seed.
    """
    names = inspect.signature(wrapper).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False}


def averaging(together: Callable[[Batch], torch.Tensor], now: bool) -> AbstractContextManager[Any]:
    """Inside, a backward pass averages over the replicas at its end, or adds up; sharded, it always averages."""
    if now or not isinstance(together, DistributedDataParallel):
        return contextlib.nullcontext()
    return together.no_sync()


def refuse(task: Task, batch_size: int, replicas: int, engine: Engine, watched: bool = False) -> None:
    """Raise CannotAnswer for what several replicas cannot do, before anything is trained."""
    if batch_size < replicas:
        raise CannotAnswer(
            f"task {task.name!r}: expected a batch of at least {replicas} examples on {replicas} devices, got "
            f"{batch_size}: use a larger batch size or fewer devices"
        )
    if engine.graphed:
        raise CannotAnswer("expected no graphed engine on several devices: their steps cannot be replayed")
    together = "shard=True" if task.shard else 'batch_norm="synchronised"' if task.batch_norm != "per replica" else ""
    if together and (engine.compiled or (task.shard and engine.channels_last)):
        switch = "compiled" if engine.compiled else "channels_last"
        raise CannotAnswer(f"task {task.name!r}: expected no {switch} engine with {together} on several devices")
    if watched:
        raise CannotAnswer("expected one device for a watched trial: its gradient noise is measured on one only")


def engine_of_several(task: Task, engine: Engine) -> Engine:
    """The engine without the switches that `refuse` would refuse."""
    together = task.shard or task.batch_norm != "per replica"
    return dataclasses.replace(
        engine,
        graphed=False,
        compiled=engine.compiled and not together,
        channels_last=engine.channels_last and not task.shard,
    )


# --- meeting ---


def is_loopback(host: str) -> bool:
    """Whether a host is reached from its own machine only, by what it is called.

    A machine's own name is not looked up: to the machine itself it may well stand for its loopback.
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listening(host: str = HERE) -> dist.TCPStore:
    """Where the ranks meet, at a port that the system chose (`.port`): a guessed one can be taken, and hangs.

    `host`: what this machine is reached at by all of them. A store of torch's own making listens on every interface;
    for ranks of one machine it gets a socket that listens on the loopback alone.
    """
    if not is_loopback(host):
        return dist.TCPStore(host, 0, None, True, wait_for_workers=False, timeout=PATIENCE)
    bound = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    port = bound.getsockname()[1]
    return dist.TCPStore(
        host, port, None, True, wait_for_workers=False, timeout=PATIENCE, master_listen_fd=bound.detach()
    )


_set_for_a_meeting: set[str] = set()  # variables, in this process


def take_interface(host: str) -> None:
    """Have gloo connect over the loopback where the ranks meet on this machine, until `leave_interface`.

    Elsewhere it takes the interface of the machine's own name; what the user has set holds everywhere.
    """
    leave_interface()
    if is_loopback(host) and INTERFACE not in os.environ and Path("/sys/class/net", LOOPBACK).exists():
        os.environ[INTERFACE] = LOOPBACK
        _set_for_a_meeting.add(INTERFACE)


def leave_interface() -> None:
    """The variable as it was before the meeting."""
    while _set_for_a_meeting:
        os.environ.pop(_set_for_a_meeting.pop(), None)


def met(rank: int, size: int, device: torch.device, store: dist.TCPStore | tuple[str, int]) -> Replicas:
    """Join the others at `store` (rank 0: what `listening` made; others: its host and port). Ends with `part_ways`."""
    take_interface(store[0] if isinstance(store, tuple) else store.host)
    if isinstance(store, tuple):
        store = dist.TCPStore(store[0], store[1], None, False, wait_for_workers=False, timeout=PATIENCE)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    return Replicas(rank, size, device)


def part_ways() -> None:
    """Leave the group: without it a process may abort at its end."""
    if dist.is_initialized():
        dist.destroy_process_group()
    leave_interface()
