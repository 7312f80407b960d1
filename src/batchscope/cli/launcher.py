"""How does a command run that a launcher started on every rank? Rank 0 runs it, the others serve it, all end alike.

A command that trains calls `joined` before anything else; of the others, one that measures calls `alone`.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

from batchscope.errors import UsageError
from batchscope.sweep.launch import launch_in

if TYPE_CHECKING:
    from batchscope.sweep.control import Control

_driven: Control | None = None  # by this process, rank 0 of several


def joined(devices: int | None) -> int:
    """How many devices to train on; under a launcher all its processes. The others than rank 0 end in here."""
    launch = launch_in(os.environ)
    if launch is None:
        return 1 if devices is None else devices
    if devices not in (None, launch.size):
        if launch.rank > 0:
            sys.exit(UsageError.exit_code)
        raise UsageError(
            f"expected --devices {launch.size}, as many as the processes that were launched, got {devices}: leave "
            "--devices out, or launch as many"
        )
    from batchscope.sweep.control import Control
    from batchscope.sweep.executors.launched import drive, serve

    if launch.rank > 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; rank 0 ends the others
        sys.exit(serve(Control(launch)))
    global _driven
    _driven = Control(launch)
    drive(_driven)
    return launch.size


def alone(command: str, because: str = "measures on one device") -> None:
    """Refuse several processes for a command that is one process's; one of them says so."""
    launch = launch_in(os.environ)
    if launch is not None and launch.rank > 0:
        sys.exit(UsageError.exit_code)
    if launch is not None:
        raise UsageError(
            f"expected one process of `{command}`, which {because}, got {launch.size} from a launcher: "
            "run it without the launcher"
        )


def tell(code: object) -> None:
    """At the command's end: the others, if there are any, end with this exit code."""
    if _driven is not None:
        from batchscope.sweep.executors.launched import end

        end(_driven, code if isinstance(code, int) else 1 if code else 0)
