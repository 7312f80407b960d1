"""The plain large batch is the task itself: the same bits as a trial of a study at that learning rate."""

from runs import TOY, spec_of, trains_digits

from batchscope.remedies.tuned import Tuned
from batchscope.training.loop import train
from toys import CPU, toy


def test_it_changes_nothing() -> None:
    task = toy()
    applied = Tuned().apply(task, TOY)
    spec = spec_of(applied, TOY, Tuned(), budget=92, cadence=23)
    with_it, without = (train(t, spec, device=CPU) for t in (applied, task))
    assert repr(with_it.trace) == repr(without.trace)
    assert applied.lr == TOY.own_learning_rate


def test_it_trains_digits() -> None:
    trains_digits(Tuned())
