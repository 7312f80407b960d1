"""Who is running this trial, and is that process still alive?

A lease names its owner by (name, process id, host, start of the process). The start time is what makes a process
id trustworthy: ids are handed out again after a crash or a reboot, start times within one boot are not.

    Linux            id and start time from /proc: a dead owner is recognised at once, also as a zombie
    macOS, others    id only (`kill(pid, 0)`): a reused id looks alive until the lease runs out
    Windows          nothing is asked (signalling there ends processes): the lease running out decides
    another host     cannot be asked: the lease running out decides
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
ENDED = "ended"  # what `process_start` says of a process that has exited and waits for its parent


@dataclass(frozen=True)
class Owner:
    """The process that holds a lease. Two runners inside one process need two names; else one name will do."""

    name: str
    pid: int
    host: str
    started: str  # boot id and clock ticks since boot; empty where the system does not tell

    def __post_init__(self) -> None:
        if self.pid <= 0:
            raise ValueError(f"an Owner needs a process id above 0, got {self.pid}: use Owner.here()")

    @classmethod
    def here(cls, name: str = "batchscope") -> Owner:
        """This process as an owner."""
        return cls(name=name, pid=os.getpid(), host=this_host(), started=process_start(os.getpid()))

    def is_gone(self) -> bool:
        """Whether the process is known to have ended. False where that cannot be known from here."""
        if os.name != "posix" or self.host != this_host():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # alive, and somebody else's
        start = process_start(self.pid)
        return start == ENDED or bool(start and self.started and start != self.started)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host.split(' ')[0]}"


def this_host() -> str:
    """The host's name and, on Linux, the namespace its process ids count in (two containers may share a name)."""
    try:
        return f"{socket.gethostname()} {os.readlink(PROC / 'self' / 'ns' / 'pid')}"
    except OSError:
        return socket.gethostname()


def process_start(pid: int) -> str:
    """When a process started, as text that no other process of this host repeats; "" where the system hides it.

    Field 22 of /proc/PID/stat is in clock ticks since boot (proc(5)), so the boot's own id stands before it. The
    fields are counted from the last ")", because the program's name in field 2 may hold anything.
    """
    try:
        fields = (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        boot = (PROC / "sys" / "kernel" / "random" / "boot_id").read_text().strip()
        return ENDED if fields[0] in ("Z", "X", "x") else f"{boot} {fields[19]}"
    except (OSError, IndexError):
        return ""
