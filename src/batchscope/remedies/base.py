"""What is a remedy? A change to how a large batch trains, made so that it trains like a small one.

A remedy takes a task and gives another: same data, same goal, evaluated alike, trained otherwise. Its `name` goes into
`Arm.remedy` and says everything that sets it apart: parameters that are not at their defaults are part of it, as in
"linear scaling (warm_up_epochs=2.0)". `by_name` reads what `name` writes.

    applied = remedy.apply(task, case)      applied.lr: the learning rate to begin with, at case.batch_size

What a remedy rests on is plain functions and classes beside it, for anybody's own loop. Whatever it has to remember is
in the `state_dict` of model, optimiser or scheduler, so that training goes on from a checkpoint bit for bit.

`together` composes remedies that set different things. One that brings its own optimiser comes first: a rule for the
learning rate then scales that optimiser's rate at the own batch size. A file of this room lists what it offers in
REMEDIES, with defaults; nothing else has to be told of it.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import math
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from batchscope.errors import CannotAnswer, UsageError
from batchscope.task import Task
from batchscope.training.control import MakeControl
from batchscope.training.seeding import drawing_from

PARTS = (  # what a remedy can set; no two that set the same go together
    "learning rate",
    "optimiser",
    "weight decay",
    "batch norm",
    "batch size",
    "training length",
    "loss",
    "gradient",
    "weights",
)
JOINED = " + "
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """The large batch, and the small one whose training it shall equal."""

    batch_size: int  # examples, global
    own_batch_size: int  # of the baseline
    own_learning_rate: float  # the baseline's, tuned
    train_size: int  # examples in the training set

    @property
    def times(self) -> float:
        """k: how many times larger the batch is."""
        return self.batch_size / self.own_batch_size


@dataclass(frozen=True)
class Remedy(ABC):
    """One remedy; a subclass adds its parameters as fields with defaults.

    Attributes:
        title: as the literature names it.
        source: key of its paper in `references.REFERENCES`; `also`: of further ones that it rests on.
        changes: one sentence: what it changes.
        cost: one sentence: passes over the data, or state, that it adds to a step.
        sets: which of PARTS it sets.
        counts: whether it makes constants of a step from the batch size, which have no meaning where the batch grows.
    """

    title: ClassVar[str]
    source: ClassVar[str]
    changes: ClassVar[str]
    cost: ClassVar[str]
    sets: ClassVar[tuple[str, ...]]
    also: ClassVar[tuple[str, ...]] = ()
    counts: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """The title, and the parameters that are not at their defaults: what `Arm.remedy` holds."""
        own = ((f.name, getattr(self, f.name), f.default) for f in dataclasses.fields(self))
        other = ", ".join(f"{name}={value!r}" for name, value, default in own if value != default)
        return f"{self.title} ({other})" if other else self.title

    @property
    def sources(self) -> tuple[str, ...]:
        """Keys of all papers that it rests on."""
        return (self.source, *self.also)

    def why_not(self, task: Task, case: Case) -> str | None:
        """Why it cannot be applied, in a sentence; None where it can. Known before anything is trained."""
        return None

    @abstractmethod
    def apply(self, task: Task, case: Case) -> Task:
        """The task with the remedy; its `lr` is the learning rate to begin with. The given task stays as it is."""

    def control(self, task: Task, case: Case) -> MakeControl | None:
        """Who decides during a trial, where batch size or schedule do not go on as usual (`training/control.py`)."""
        return None

    def length(self, case: Case) -> float:
        """How many times as many examples as others a trial may use: more than 1 only for what trains longer."""
        return 1.0


def optimizer_of(task: Task, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
    """The task's optimiser, of a model that is thrown away: to see which it is. No generator is left changed."""
    with drawing_from(0):
        return task.optimizer(task.model() if model is None else model, task.lr)


# --- composition ---


def together(*remedies: Remedy) -> Remedy:
    """One remedy that is all of these.

    Raises CannotAnswer where two of them set the same thing, or one changes nothing.
    """
    parts = [part for remedy in remedies for part in (remedy.parts if isinstance(remedy, Together) else (remedy,))]
    if not parts:
        raise CannotAnswer("expected remedies to compose, got none: name at least one")
    if len(parts) == 1:
        return parts[0]
    setters: dict[str, Remedy] = {}
    for remedy in parts:
        if not remedy.sets:
            raise CannotAnswer(f"expected remedies that change something, got {remedy.name!r}: leave it out")
        for part in remedy.sets:
            if part in setters:
                raise CannotAnswer(
                    f"expected remedies that set different things, got {setters[part].name!r} and {remedy.name!r}, "
                    f"which both set the {part}: leave one out"
                )
            setters[part] = remedy
    grows = setters.get("batch size")
    for remedy in parts:
        if grows is not None and remedy.counts:
            raise CannotAnswer(
                f"expected a batch of one size for {remedy.name!r}, which counts its steps in examples, got "
                f"{grows.name!r}: leave one out"
            )
    return Together(tuple(sorted(parts, key=_order)))


@dataclass(frozen=True)
class Together(Remedy):
    """Several remedies as one; made by `together`."""

    parts: tuple[Remedy, ...] = ()

    @property
    def name(self) -> str:
        """The parts' names, always in the same order."""
        return JOINED.join(part.name for part in self.parts)

    @property
    def sources(self) -> tuple[str, ...]:
        """Keys of all papers that it rests on."""
        return tuple(dict.fromkeys(key for part in self.parts for key in part.sources))

    def __getattr__(self, field: str) -> Any:
        """`title`, `source`, `changes`, `cost` and `sets`: what the parts have, joined."""
        own: dict[str, Any] = {
            "title": lambda: JOINED.join(part.title for part in self.parts),
            "source": lambda: self.parts[0].source,
            "changes": lambda: " ".join(part.changes for part in self.parts),
            "cost": lambda: " ".join(part.cost for part in self.parts),
            "sets": lambda: tuple(name for part in self.parts for name in part.sets),
        }
        if field not in own:
            raise AttributeError(field)
        return own[field]()

    def why_not(self, task: Task, case: Case) -> str | None:
        """The first part's reason that has one, seen on the task that the parts before it made."""
        for part in self._in_turn():
            reason = part.why_not(task, case)
            if reason is not None:
                return reason
            task, case = _after(part, task, case)
        return None

    def apply(self, task: Task, case: Case) -> Task:
        """All of them: that with the optimiser first, the rule for the learning rate last."""
        task = dataclasses.replace(task, lr=case.own_learning_rate)
        for part in self._in_turn():
            task, case = _after(part, task, case)
        return task

    def control(self, task: Task, case: Case) -> MakeControl | None:
        """That of the one part that has one: all that have one set the learning rate, which only one part can."""
        return next((made for part in self.parts if (made := part.control(task, case)) is not None), None)

    def length(self, case: Case) -> float:
        """All parts' together."""
        return math.prod(part.length(case) for part in self.parts)

    def _in_turn(self) -> list[Remedy]:
        return sorted(self.parts, key=lambda part: ("learning rate" in part.sets, "optimiser" not in part.sets))


def _after(part: Remedy, task: Task, case: Case) -> tuple[Task, Case]:
    """The task with this part, and what the next one scales from: an optimiser's own rate at the own batch size."""
    applied = part.apply(task, case)
    if "learning rate" in part.sets:
        return applied, case
    if "optimiser" not in part.sets:  # the rate is another part's
        return dataclasses.replace(applied, lr=task.lr), case
    own = part.apply(task, dataclasses.replace(case, batch_size=case.own_batch_size))
    return applied, dataclasses.replace(case, own_learning_rate=own.lr)


def _order(remedy: Remedy) -> tuple[int, str]:
    """By the first thing that it sets, then by name."""
    return min((PARTS.index(part) for part in remedy.sets), default=-1), remedy.name


# --- by name ---


@functools.cache
def all_remedies() -> tuple[Remedy, ...]:
    """Every remedy of this room, with its default parameters."""
    room = importlib.import_module("batchscope.remedies")
    names = sorted(module.name for module in pkgutil.iter_modules(room.__path__))
    found = [getattr(importlib.import_module(f"{room.__name__}.{name}"), "REMEDIES", ()) for name in names]
    return tuple(sorted((remedy for some in found for remedy in some), key=_order))


def by_name(text: str) -> Remedy:
    """The remedy of that name: a title, parameters in brackets where they are not the defaults, joined by " + ".

    Raises UsageError for a name that there is none of, CannotAnswer for remedies that do not go together.
    """
    return together(*(_single(part.strip()) for part in text.split(JOINED)))


def _single(text: str) -> Remedy:
    """One remedy, by its title and parameters."""
    titles = {remedy.title: remedy for remedy in all_remedies()}
    if text in titles:
        return titles[text]
    title, _, bracket = text.removesuffix(")").partition(" (")
    if title not in titles:
        raise UsageError(f"expected the name of a remedy ({', '.join(titles)}), got {text!r}: choose one of these")
    try:
        return dataclasses.replace(titles[title], **_parameters(bracket))
    except (SyntaxError, TypeError, ValueError) as error:
        known = ", ".join(f"{f.name}={f.default!r}" for f in dataclasses.fields(titles[title])) or "none"
        raise UsageError(
            f"expected parameters of {title!r} ({known}), got {bracket!r}: write {title!r} by itself for the defaults"
        ) from error


def _parameters(bracket: str) -> Mapping[str, Any]:
    """What stands in the brackets: `name=value, ...` of plain values; ValueError or SyntaxError for anything else."""
    call = ast.parse(f"f({bracket})", mode="eval").body
    if not isinstance(call, ast.Call) or call.args or not all(word.arg for word in call.keywords):
        raise ValueError(bracket)
    return {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
