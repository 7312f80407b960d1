"""Runs a function on N ranks that have met, each in a process of its own; returns what they return, by rank."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from typing import Any

import torch

from batchscope.training.distributed import Replicas, listening, met, part_ways

CPU = torch.device("cpu")
LONGEST = 150.0  # seconds that any of these tests takes on a busy machine: about 20 on an idle one


def on_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`function(replicas, *arguments)` on every rank; what is handed over is pickled."""
    context = multiprocessing.get_context("spawn")
    ports, results = context.SimpleQueue(), context.Queue()
    processes = [
        context.Process(target=_rank, args=(r, size, ports, results, function, arguments)) for r in range(size)
    ]
    for process in processes:
        process.start()
    try:
        found: dict[int, Any] = {}
        while len(found) < size:
            rank, result = results.get(timeout=LONGEST)
            if isinstance(result, Exception):  # the others wait for it for ever
                raise result
            found[rank] = pickle.loads(result)
        for process in processes:
            process.join(LONGEST)
    finally:
        for process in processes:
            process.kill()
    return [found[r] for r in range(size)]


def _rank(rank: int, size: int, ports: Any, results: Any, function: Callable[..., Any], arguments: Any) -> None:
    torch.set_num_threads(1)
    try:
        store = listening() if rank == 0 else None
        for _ in range(size - 1 if store is not None else 0):
            ports.put(store.port)
        replicas: Replicas = met(rank, size, CPU, store or ("127.0.0.1", ports.get()))
        results.put((rank, pickle.dumps(function(replicas, *arguments))))  # not torch's own way, by shared files
        part_ways()
    except Exception as error:
        results.put((rank, RuntimeError(f"rank {rank}: {type(error).__name__}: {error}")))
