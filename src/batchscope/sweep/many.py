"""How are many independent jobs done, as many at once as the executor has slots? Each is handed over when it is done.

A job whose worker dies is tried once more. On any exception, Ctrl-C among them, what was handed over stays done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from batchscope.errors import CannotAnswer
from batchscope.sweep.executors.base import Died, Done, Executor, Line, Refused
from batchscope.sweep.messages import Job
from batchscope.sweep.runner import as_error

POLL_SECONDS = 0.5


def do_all(
    executor: Executor,
    jobs: Mapping[str, Job],
    on_done: Callable[[str, Any], None],
    on_line: Callable[[str, dict[str, Any]], None] = lambda name, line: None,
) -> None:
    """Do all jobs; their ids are their names here. `on_done` gets a job's plain result, in no set order."""
    waiting, running, deaths = list(jobs), set[str](), set[str]()
    executor.meanwhile = lambda line: on_line(line.job, line.line)
    while waiting or running:
        while waiting and len(running) < executor.slots:
            name = waiting.pop(0)
            executor.start(jobs[name])
            running.add(name)
        for event in executor.events(POLL_SECONDS):
            if isinstance(event, Line):
                on_line(event.job, event.line)
                continue
            running.discard(event.job)
            if isinstance(event, Done):
                on_done(event.job, event.result)
            elif isinstance(event, Refused):
                raise as_error(event)
            elif isinstance(event, Died) and event.job not in deaths:
                deaths.add(event.job)
                waiting.insert(0, event.job)
            else:
                raise CannotAnswer(
                    f"expected a worker to do the task's {jobs[event.job].kind} job, it died twice: {event.reason}"
                )
