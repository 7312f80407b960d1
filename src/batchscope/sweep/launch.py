"""Was this process started by a launcher, beside others that run the same command? Which of them is it? Needs no torch.

    torchrun, Kubernetes' PyTorchJob   RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT; torchrun LOCAL_RANK too
    Slurm's srun                       SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID; MASTER_ADDR and MASTER_PORT are the
                                       user's to export: the node of rank 0, and a port that is free there

A Slurm job's own script has the variables of its first task, and is not launched: a step has a SLURM_STEP_ID.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from batchscope.errors import UsageError

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
MEETING = ("MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """This process among those that a launcher started."""

    rank: int
    size: int
    place: int | None  # its number on its own machine; None where the launcher does not say
    address: str  # where rank 0 is found
    port: int


def launch_in(environment: Mapping[str, str]) -> Launch | None:
    """What the variables say; None for a process by itself. Raises UsageError where they say half of it."""
    names = next((n for n in (TORCHRUN, SLURM) if environment.get(n[0]) and environment.get(n[1])), None)
    if names is None:
        return None
    rank, size = (_number(environment, name) for name in names[:2])
    if size == 1 or (names is SLURM and _is_script(environment)):
        return None
    if not rank < size:
        raise UsageError(f"expected {names[0]} below {names[1]}, got {rank} and {size}: let the launcher set them")
    missing = [name for name in MEETING if not environment.get(name)]
    if missing:
        ours = "export them in the job's script, the node of rank 0 and a port that is free on it"
        other = "let the launcher set them"
        raise UsageError(
            f"expected {' and '.join(missing)} where {names[1]} says {size} processes, got none: "
            f"{ours if names is SLURM else other}, or run the command as one process"
        )
    place = _number(environment, names[2]) if environment.get(names[2]) else None
    return Launch(rank, size, place, environment[MEETING[0]], _number(environment, MEETING[1]))


def _is_script(environment: Mapping[str, str]) -> bool:
    """Whether this is a Slurm job's script itself, and not a step of it."""
    return "SLURM_JOB_ID" in environment and "SLURM_STEP_ID" not in environment


def _number(environment: Mapping[str, str], name: str) -> int:
    """A variable as a number from 0 up."""
    if not environment[name].isdecimal():
        raise UsageError(f"expected {name} as a whole number, got {environment[name]!r}: let the launcher set it")
    return int(environment[name])
