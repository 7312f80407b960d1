"""What does a worker do? One of a few jobs, each a plain message in and a plain message out.

    trial      train one trial
    threads    choose workers, threads and the engine's switches, once for a study
    scaling    seconds per step against batch size and device count, on several ranks together
    timing     seconds per step against batch size; `splits` the same with accumulation
    memory     bytes at one micro-batch size; asked of a fresh worker each time
    noise      follow one trial and measure its gradients
    point, pictures, continued      of stored weights (`sweep/flatness_jobs.py`)
    remedies   seconds per step with each of some remedies, beside the plain task's
    facts      what a profile needs to know of the task: largest example, units, operations, free device memory

The same functions serve worker processes and a notebook's own process, so that a trial is the same bits either way.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from batchscope.analysis.target import crossing
from batchscope.errors import BatchscopeError, TaskError
from batchscope.measure.beside import NoiseBeside
from batchscope.measure.compared_steps import time_compared
from batchscope.measure.energy import MEASURED, NOT_MEASURED, EnergyMeter
from batchscope.measure.engines import fastest_engine
from batchscope.measure.flops import count_flops
from batchscope.measure.follow import follow
from batchscope.measure.memory import observe
from batchscope.measure.peak import peak_meter, physical_bytes
from batchscope.measure.samples import largest_sample, units_per_example
from batchscope.measure.scaling import time_scaling
from batchscope.measure.throughput import fastest_threads, time_splits, time_steps
from batchscope.records import Arm, Conditions, Engine, Goal, TrialSpec, from_plain, to_plain
from batchscope.sweep.flatness_jobs import do_continued, do_pictures, do_point
from batchscope.sweep.messages import CONNECTION_LOST, Job, TaskReference
from batchscope.sweep.ranks import Pulse, leave_place, ranked, take_place
from batchscope.sweep.treated import grows, treated
from batchscope.task import Task, load_task
from batchscope.training.checkpoint import Checkpoint
from batchscope.training.connection import is_of_connection
from batchscope.training.device import cores, pick_device, set_up
from batchscope.training.distributed import Replicas, engine_of_several, part_ways
from batchscope.training.engine import PLAIN
from batchscope.training.fingerprint import fingerprint
from batchscope.training.loop import Evaluator, train
from batchscope.training.weights import KeptWeights, Weights, save_weights

FLATNESS = {"point": do_point, "pictures": do_pictures, "continued": do_continued}


def warm_up() -> None:
    """Make torch import what it imports late (its first optimiser takes seconds): done while there is nothing to do."""
    weight = torch.nn.Parameter(torch.zeros(1))
    torch.optim.SGD([weight], lr=0.1).zero_grad()


def place(conditions: Conditions) -> dict[str, Any]:
    """The details of a job that is done under these conditions."""
    return {"threads": conditions.threads, "precision": conditions.precision, "engine": to_plain(conditions.engine)}


def trial_job(
    trial_id: str,
    spec: TrialSpec,
    goal: Goal | None,
    threads: int,
    precision: str,
    checkpoint: str | None,
    seconds: float,
    engine: Engine | None = None,
    watch: bool = False,
    keep: dict[str, Any] | None = None,
    at_cap: bool = False,
) -> Job:
    """Train one trial, from its checkpoint where there is one; with `watch`, measure its gradient noise beside it.

    `keep`: where its weights are written, and whose they are (`Keeping.order`). `at_cap`: leave a checkpoint where it
    is capped.
    """
    details = {
        "spec": to_plain(spec),
        "goal": to_plain(goal),
        "threads": threads,
        "precision": precision,
        "checkpoint": checkpoint,
        "checkpoint_seconds": seconds,
        "engine": to_plain(engine or Engine()),
        "watch": watch,
        "keep": keep,
        "at_cap": at_cap,
    }
    return Job(trial_id, "trial", details)


def _keeper(spec: TrialSpec, path: str, fingerprint: str, task: dict[str, Any] | None) -> Callable[[Weights], None]:
    """What writes a trial's weights."""
    whose: dict[str, Any] = {"spec": spec, "fingerprint": fingerprint, "task": task}
    return lambda weights: save_weights(Path(path), KeptWeights(**vars(weights), **whose))


def refusal(job: Job, error: Exception) -> dict[str, str]:
    """What to say when a job could not be done: the kind of error it is for the caller, and its sentence.

    The user's own code fails inside a trial as a trial (`failed`); what is raised around it, or in a job that is not a
    trial, would be raised again by the next worker. A lost connection to the other ranks says nothing of the task.
    """
    if isinstance(error, BatchscopeError):
        return {"error": type(error).__name__, "sentence": str(error)}
    text = f"{type(error).__name__}: {error}".split("\n")[0][:300]
    if is_of_connection(error):
        return {"error": CONNECTION_LOST, "sentence": text}
    sentence = f"the task's {job.kind} job raised {text}: run one training step of the task in Python to see why"
    return {"error": "TaskError", "sentence": sentence}


class Workbench:
    """A loaded task in this process, ready for jobs; keeps what its trials share."""

    def __init__(self, task: Task) -> None:
        self.task, self.device = task, pick_device()
        self._evaluator: Evaluator | None = None
        self._placed = False

    @staticmethod
    def from_reference(found: TaskReference) -> Workbench:
        """Load the task where the reference says; TaskError if it is no longer the task that the study began with."""
        os.chdir(found.folder)
        sys.path[:] = [*found.path, *(p for p in sys.path if p not in found.path)]
        task = load_task(found.reference)
        name, _ = fingerprint(task)
        if name != found.fingerprint:
            raise TaskError(
                f"task {task.name!r}: expected the same task as when the study began ({found.fingerprint}), "
                f"got {name}: its file or data changed meanwhile, or it draws random data without a fixed seed; "
                "run the study again"
            )
        return Workbench(task)

    def do(self, job: Job, on_line: Callable[[dict[str, Any]], None], pulse: Pulse | None = None) -> Any:
        """Do one job; `on_line` hears of every evaluation or window; `pulse`: a rank's. Returns a plain result."""
        kinds = {
            "trial": self._trial,
            "threads": self._threads,
            "timing": self._timing,
            "splits": self._splits,
            "memory": self._memory,
            "remedies": self._remedies,
            "noise": self._noise,
            "facts": self._facts,
            **{name: partial(self._flatness, do) for name, do in FLATNESS.items()},
        }
        together = {"trial": self._trial, "scaling": self._scaling}
        if "rank" in job.details and pulse is not None:
            self._work_on(take_place(job.details.get("place", job.details["rank"])), True)
            with ranked(job.details, self.device, pulse) as replicas:
                return together[job.kind](job.details, on_line, replicas)
        if self._placed:
            part_ways()  # else what asks for a group (nn.SyncBatchNorm, say) would wait for the other ranks
            self._work_on(leave_place(), False)
        return kinds[job.kind](job.details, on_line)

    def _work_on(self, device: torch.device, placed: bool) -> None:
        """This device from now on; `placed`: as a rank."""
        self._placed = placed
        if device != self.device:
            self.device, self._evaluator = device, None

    def _trial(
        self, details: dict[str, Any], on_line: Callable[[dict[str, Any]], None], replicas: Replicas | None = None
    ) -> Any:
        conditions = self._set_up(details)
        if self._evaluator is None:
            self._evaluator = Evaluator(self.task, self.device)
        path, spec = details["checkpoint"], from_plain(TrialSpec, details["spec"])
        hooked = not (conditions.engine.graphed or conditions.engine.compiled)  # those steps call no hook
        beside = NoiseBeside(self.task, spec) if details["watch"] and hooked else None
        task, control = treated(self.task, spec.arm)
        result = train(
            task,
            spec,
            device=self.device,
            evaluator=self._evaluator,
            goal=from_plain(Goal | None, details["goal"]),
            crossed=lambda trace, goal: crossing(trace, goal) is not None,
            checkpoint=Checkpoint(path, details["checkpoint_seconds"], details["at_cap"]) if path else None,
            on_evaluation=lambda line: on_line({"examples": line.examples, "loss": line.validation["loss"]}),
            engine=conditions.engine if control is None else PLAIN,
            control=control,
            watch=beside,
            replicas=replicas,
            keep=_keeper(spec, **details["keep"]) if details["keep"] is not None else None,
        )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return to_plain(result if beside is None else replace(result, noise_scale=beside.scale()))

    def _threads(self, details: dict[str, Any], _: Any) -> Any:
        """For trials on one device, or on `world_size`: there one at a time, on a CPU a core for each replica."""
        set_up(1, self.device, self.task.precision)
        replicas = details.get("world_size", 1)
        sizes = sorted({max(1, size // replicas) for size in details["batch_sizes"]})  # of a replica's part
        if self.device.type == "cuda":  # one trial at a time has the card
            threads, workers = max(1, min(4, cores() // replicas)), 1
        elif replicas > 1:
            threads, workers = 1, 1
        else:
            threads, _work = fastest_threads(self.task, sizes, self.device, cores())
            workers = max(1, cores() // threads)
        set_up(threads, self.device, self.task.precision)
        engine = fastest_engine(self.task, sizes, self.device)
        if replicas > 1:
            engine = engine_of_several(self.task, engine)
        conditions = set_up(threads, self.device, self.task.precision, engine, replicas)
        return {"workers": workers, "conditions": to_plain(conditions)}

    def _timing(self, details: dict[str, Any], on_line: Callable[[dict[str, Any]], None]) -> Any:
        conditions = self._set_up(details)
        options = details.get("options", {})
        return to_plain(time_steps(self.task, details["batch_sizes"], self.device, conditions, tell=on_line, **options))

    def _scaling(self, details: dict[str, Any], on_line: Callable[[dict[str, Any]], None], everyone: Replicas) -> Any:
        conditions = self._set_up(details)
        sizes, counts, options = details["batch_sizes"], details["counts"], details.get("options", {})
        return to_plain(time_scaling(self.task, sizes, counts, everyone, conditions, tell=on_line, **options))

    def _splits(self, details: dict[str, Any], on_line: Callable[[dict[str, Any]], None]) -> Any:
        conditions = self._set_up(details)
        splits = [(size, micro) for size, micro in details["splits"]]
        return to_plain(time_splits(self.task, splits, self.device, conditions, tell=on_line))

    def _remedies(self, details: dict[str, Any], on_line: Callable[[dict[str, Any]], None]) -> Any:
        """`arms`: by name, one or more of one remedy at several batch sizes."""
        conditions = self._set_up(details)
        arms = {name: from_plain(tuple[Arm, ...], some) for name, some in details["arms"].items()}
        made = {(name, arm.batch_size): treated(self.task, arm) for name, some in arms.items() for arm in some}
        growing = {name for name, some in arms.items() if grows(some[0])}  # many sizes: reckoned from plain steps
        tasks = {name: (made[name, some[0].batch_size][0], [a.batch_size for a in some]) for name, some in arms.items()}
        steady = {turn: control for turn, (_, control) in made.items() if control and turn[0] not in growing}
        return to_plain(time_compared(self.task, tasks, self.device, conditions, controls=steady, tell=on_line))

    def _memory(self, details: dict[str, Any], on_line: Callable[[dict[str, Any]], None]) -> Any:
        conditions = self._set_up(details)
        seen = observe(
            self.task,
            details["micro_batch_size"],
            self.device,
            engine=conditions.engine,
            largest=details["largest"],
            limit_bytes=details["limit_bytes"],
            tell=on_line,
        )
        return to_plain(seen)

    def _noise(self, details: dict[str, Any], on_line: Callable[[dict[str, Any]], None]) -> Any:
        self._set_up(details)
        followed = follow(
            self.task,
            from_plain(TrialSpec, details["spec"]),
            device=self.device,
            goal=from_plain(Goal | None, details["goal"]),
            every=details["every"],
            checkpoints=details["checkpoints"],
            tell=on_line,
        )
        return to_plain(followed)

    def _flatness(
        self, do: Callable[..., Any], details: dict[str, Any], on_line: Callable[[dict[str, Any]], None]
    ) -> Any:
        self._set_up(details)
        return do(self.task, self.device, details, on_line)

    def _facts(self, details: dict[str, Any], on_line: Callable[[dict[str, Any]], None]) -> Any:
        conditions = self._set_up(details)
        sample = largest_sample(self.task)
        free, total = (physical_bytes(),) * 2
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
        return {
            "largest": sample.index,
            "sample_is": sample.found,
            "units_per_example": units_per_example(self.task, self.device),
            "flops": to_plain(count_flops(self.task, self.device, conditions.precision)),
            "free_bytes": free,
            "total_bytes": total,
            "measured_as": peak_meter(self.device).measured_as,
            "energy_is": MEASURED if EnergyMeter(self.device).joules() is not None else NOT_MEASURED,
        }

    def _set_up(self, details: dict[str, Any]) -> Conditions:
        """This process as the job wants it: threads, precision (the task's own unless given), engine."""
        engine = from_plain(Engine, details.get("engine", {}))
        return set_up(details["threads"], self.device, details.get("precision", self.task.precision), engine)
