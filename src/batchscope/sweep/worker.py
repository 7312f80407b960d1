"""The worker process: jobs in on standard input, results out on standard output, a JSON object a line.

It dies with its parent: a thread reads the input, and when that ends (the parent closed it, or was killed) the process
ends at once, in mid-step if need be, with the data loader's processes that it started. What the task prints goes to
standard error, so that it cannot break the protocol.

The input is read through a file of its own, never through `sys.stdin`: a data loader's process is a fork, which closes
`sys.stdin`, and would wait for ever for a lock that the reading thread held when it was forked.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import threading
from functools import partial
from typing import Any, TextIO


def main() -> None:
    """Serve jobs until the input ends."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    messages = os.fdopen(os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    jobs: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_read, args=(messages, jobs), daemon=True).start()

    one_at_a_time = threading.Lock()

    def reply(job: str, kind: str, content: Any) -> None:
        with one_at_a_time:  # a thread of a trial on several ranks replies too
            replies.write(json.dumps({"kind": kind, "job": job, "content": content}) + "\n")

    # torch takes seconds: the input is being read meanwhile, and a first optimiser brings the rest of what it imports
    from batchscope.sweep.jobs import Job, TaskReference, Workbench, refusal, warm_up
    from batchscope.sweep.ranks import Pulse

    warm_up()
    first = jobs.get()
    bench: Workbench | None = None
    while True:
        job = Job(**jobs.get())
        try:
            say = partial(reply, job.id)
            with Pulse(say) if "rank" in job.details else contextlib.nullcontext() as pulse:
                if bench is None:
                    bench = Workbench.from_reference(TaskReference(**first))
                result = bench.do(job, partial(say, "line"), pulse)
            say("done", result)
        except Exception as error:
            reply(job.id, "refused", refusal(job, error))


def _read(lines: TextIO, jobs: queue.Queue[dict[str, Any]]) -> None:
    """Queue every line; end the process, and its children, when there are no more."""
    for line in lines:
        jobs.put(json.loads(line))
    if hasattr(os, "getpgrp") and os.getpgrp() == os.getpid():  # the executor made it the leader of its own group
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    main()
