"""Which source of squared norms suits this model and this loop? The cheapest of those that are unbiased.

    1. data-parallel processes: replicas. They hold the parts already; one small all-reduce a measured step
    2. two backward passes or more in a step: micro-batches. They are there already
    3. every trainable parameter belongs to a layer with a formula, and no batch norm: examples
    4. else: parts, the two halves of the batch, one more backward pass

Where a source turns out not to work, at the first step that it measures, the next one takes its place.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import nn

from batchscope.errors import UnsupportedTask, UsageError
from batchscope.measure.accumulated import MicroBatches
from batchscope.measure.coupling import batch_norms
from batchscope.measure.gradients import Source
from batchscope.measure.halves import Halves
from batchscope.measure.per_example import PerExample
from batchscope.measure.proxies import Proxies
from batchscope.records import NOISE_SOURCES


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own module inside DistributedDataParallel. Refuses models whose parameters are sharded."""
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    whole = not any(type(p).__name__ == "DTensor" or hasattr(p, "_is_sharded") for p in inner.parameters())
    if not whole or any(type(module).__name__ == "FullyShardedDataParallel" for module in inner.modules()):
        raise UnsupportedTask(
            "expected whole parameters in every process, got sharded ones (FSDP, tensor parallelism): measure with "
            "DistributedDataParallel, or on one device"
        )
    if len({p.device for p in inner.parameters()}) > 1:
        raise UnsupportedTask(
            "expected a model on one device, got one that is spread over several: give one of its parts"
        )
    if not any(p.requires_grad for p in inner.parameters()):
        raise UsageError("expected a model with trainable parameters, got none: give the module that is trained")
    return inner


def data_parallel_group(model: nn.Module) -> Any:
    """The process group that averages gradients; None in a single process.

    Of an unwrapped model in a distributed program that is the default group: what Lightning and Trainer use.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return model.process_group if dist.get_world_size(model.process_group) > 1 else None
    together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return dist.group.WORLD if together else None


class Candidates:
    """The sources to try, in order; `chosen` by name where the user says so."""

    def __init__(self, model: nn.Module, group: Any, name: str | None, proxies: Proxies | None) -> None:
        if name is not None and name not in NOISE_SOURCES:
            raise UsageError(f"expected a source of {', '.join(NOISE_SOURCES)}, got {name!r}: or leave it out")
        if group is not None and name not in (None, "replicas"):
            raise UsageError(f'expected source "replicas" under data parallelism, got {name!r}: leave it out')
        if group is None and name == "replicas":
            raise UsageError('expected data-parallel processes for source "replicas", got one process: leave it out')
        if proxies is not None and (group is not None or name not in (None, "parts")):
            got = "data parallelism" if group is not None else f"source {name!r}"
            raise UsageError(f'expected the source "parts" for proxies, got {got}: leave proxies out')
        self.model, self.group, self.name, self.proxies = model, group, name, proxies
        self.refused: dict[str, str] = {}  # source -> why it does not work here

    def first(self, backward_passes: int) -> Source:
        """The source for a loop that makes so many backward passes a step."""
        if self.group is not None or self.name == "micro-batches" or (self.name is None and backward_passes > 1):
            if self.proxies is not None:
                self.refused["parts"] = "the loop accumulates micro-batches, so that there are no proxies"
            return MicroBatches(self.model, self.group)
        if self.name == "parts" or self.proxies is not None:
            return Halves(self.model, self.proxies)
        found = PerExample(self.model)
        coupled = batch_norms(self.model)
        if coupled:
            self.refused["examples"] = f"batch norm ({coupled[0]}) mixes the examples of a batch"
        elif not found.uncovered or self.name == "examples":
            return found
        else:
            self.refused["examples"] = why_uncovered(found)
        if self.name == "examples":
            raise UnsupportedTask(f"per-example gradients are not to be had: {self.refused['examples']}")
        return Halves(self.model, self.proxies)

    def after(self, source: Source) -> Source | None:
        """What to try where this source showed nothing; notes why."""
        if isinstance(source, PerExample) and source.uncovered:
            self.refused[source.name] = why_uncovered(source)
            return Halves(self.model, self.proxies) if self.name is None else None
        if source.lasting:
            self.refused[source.name] = source.why_not
            return None
        return source


def why_uncovered(source: PerExample) -> str:
    """In words: which parameters' examples are not seen."""
    name, why = next(iter(source.uncovered.items()))
    more = len(source.uncovered) - 1
    return f"parameter {name}: {why}" + (f", and {more} more" if more else "")
