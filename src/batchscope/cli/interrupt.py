"""Was Ctrl-C pressed? A KeyboardInterrupt that is raised inside a library's import or callback may be swallowed there.

So it is remembered too, and `check` raises it again at the next event of a verb.
"""

from __future__ import annotations

import signal

_seen = False


def remember() -> None:
    """From now on Ctrl-C is remembered; a handler that somebody else has set is left alone."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _handle)


def check() -> None:
    """Raise KeyboardInterrupt if Ctrl-C was pressed."""
    if _seen:
        raise KeyboardInterrupt


def _handle(number: int, frame: object) -> None:
    global _seen
    _seen = True
    raise KeyboardInterrupt
