"""Which switches of the engine are on, and what does each change? The one place where they are set and chosen.

    channels_last   4-D weights and 4-D inputs are stored with their channels innermost, as convolutions like them
    compiled        a batch's loss and its gradient through torch.compile, compiled once per shape of batch
    graphed         CUDA: full batches replay one captured step, without Python (`training/graphs.py`)
    prefetched      CUDA: the next batch is copied while this one computes (`training/batches.py`)

A switch changes how a step is computed, never what: results agree within rounding. That rounding is why the switches
are chosen once per study, stored with it, and part of a trial's conditions. Evaluations are computed alike whatever
is on: eagerly, by the same code.

What is compiled is the function (model, batch) -> loss, not the module. `nn.Module.compile` leaves a model of torch's
own containers (an `nn.Sequential`, say) as slow as it was without a word, since Dynamo does not look into torch's
files for a place to start; and a compiled module would compile anew for each shape that an evaluation has.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import math
import os
import shutil
import statistics
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from batchscope.records import Engine

PLAIN = Engine()  # nothing switched on: the step is as a hand-written loop's

WORTH = 1.05  # a switch must be faster by more than this factor, nowhere slower by more (a guess: above timing's noise)
SHAPES = 64  # of batches that one trial may compile before torch falls back to eager (a guess; torch's own limit is 8)
TRITON_CAPABILITY = (7, 0)  # oldest CUDA architecture that torch._inductor.scheduler accepts for Triton

# --- setting them ---


def prepared_model(model: torch.nn.Module, engine: Engine) -> torch.nn.Module:
    """The model as the engine wants it: the same module, the same parameter names.

    Where steps will be compiled, what was compiled for earlier models is thrown away: a trial's code must not follow
    from what this process did before.
    """
    if engine.compiled:
        torch.compiler.reset()
    if engine.channels_last:
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = channels_innermost(tensor.data)
    return model


def compiled(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The function through torch.compile, for one shape at a time; dropout draws as it does without a compiler.

    Code for any shape would depend on which shapes came first, and a trial's bits with it. The compiler uses as many
    threads as the trial; with one, it starts no process.
    """
    config: Any = importlib.import_module("torch._dynamo.config")  # takes seconds: only where the compiler is used
    config.recompile_limit = max(config.recompile_limit, SHAPES)
    options = {"fallback_random": True, "compile_threads": torch.get_num_threads()}
    return torch.compile(function, dynamic=False, options=options)


def channels_innermost(tensor: torch.Tensor) -> torch.Tensor:
    """Images and filters (4-D, floating point) in channels-last memory format; any other tensor as it is."""
    if tensor.dim() == 4 and tensor.is_floating_point():
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor


# --- choosing them ---


def available(model: torch.nn.Module, device: torch.device) -> Engine:
    """The switches that can make a difference to this model here: those worth timing."""
    on_card = device.type == "cuda"
    convolutions = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    return Engine(
        channels_last=any(isinstance(module, convolutions) for module in model.modules()),
        compiled=has_compiler(device),
        graphed=on_card,
        prefetched=on_card,
    )


def has_compiler(device: torch.device) -> bool:
    """Whether what torch.compile generates can be compiled here, as far as looking for files tells: a moment's work.

    On CUDA that is Triton and a card that it knows; on the CPU a C++ compiler and Python's headers.
    """
    if device.type == "cuda":
        has_triton = importlib.util.find_spec("triton") is not None
        return has_triton and torch.cuda.get_device_capability(device) >= TRITON_CAPABILITY
    compilers = (os.environ.get("CXX", "").split()[:1] or [""])[0], "g++", "clang++", "c++"
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    return headers.is_file() and any(name and shutil.which(name) for name in compilers)


def one_more(engine: Engine, possible: Engine) -> list[Engine]:
    """This engine with one further switch on, for each that is possible and off: what to time beside it."""
    off = [f.name for f in dataclasses.fields(Engine) if getattr(possible, f.name) and not getattr(engine, f.name)]
    return [dataclasses.replace(engine, **{name: True}) for name in off]


def choose(seconds: Mapping[Engine, Sequence[float]]) -> Engine:
    """The engine to use, given each measured engine's seconds per step at the same sizes, in the same order.

    A walk from the plain engine, one switch at a time, over the engines that were measured: a switch is turned on if
    steps become more than `WORTH` times faster in the geometric mean over the sizes, and at no size more than `WORTH`
    times slower; of several, the one that leaves the fastest steps. What was not measured is never chosen.

    Raises ValueError where the plain engine was not measured, or not at as many sizes as another.
    """
    if PLAIN not in seconds or len({len(times) for times in seconds.values()}) != 1:
        raise ValueError(
            f"expected seconds of the plain engine and of others at the same sizes, got {dict(seconds)}: "
            "time every engine at every size"
        )
    chosen = PLAIN
    everything = Engine(*(True for _ in dataclasses.fields(Engine)))
    while better := [e for e in one_more(chosen, everything) if e in seconds and _pays(seconds[e], seconds[chosen])]:
        chosen = min(better, key=lambda engine: statistics.geometric_mean(seconds[engine]))
    return chosen


def _pays(on: Sequence[float], off: Sequence[float]) -> bool:
    """Whether `on` is faster by more than WORTH in the geometric mean, and nowhere slower by more than WORTH."""
    ratios = [a / b for a, b in zip(on, off, strict=True)]
    return statistics.geometric_mean(ratios) < 1 / WORTH and max(ratios) <= WORTH


def compile_pays_back(trial_seconds_plain: float, speedup: float, compile_seconds: float, shapes: int) -> bool:
    """Whether a compiled trial ends before a plain one: T - T / speedup > shapes * compile_seconds.

    Args:
        trial_seconds_plain: T, seconds that all steps of one trial take without the compiler.
        speedup: plain seconds per step over compiled ones.
        compile_seconds: what compiling the step for one shape of batch costs.
        shapes: how many a trial has: the full batch, the short last one, and their micro-batches'.
    """
    saved = trial_seconds_plain * (1 - 1 / speedup) if speedup > 0 else -math.inf
    return saved > shapes * compile_seconds
