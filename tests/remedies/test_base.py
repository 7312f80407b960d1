"""Remedies by name, and together: what they say of themselves is unique, whole, and what the store holds of them."""

import dataclasses

import pytest
from runs import TOY

from batchscope.errors import CannotAnswer, UsageError
from batchscope.records import Arm
from batchscope.references import REFERENCES
from batchscope.remedies.base import PARTS, all_remedies, by_name, together
from batchscope.remedies.scaling import LinearScaling, SquareRootScaling
from batchscope.remedies.tuned import Tuned
from toys import toy


def test_each_says_what_it_is() -> None:
    names = [remedy.name for remedy in all_remedies()]
    assert len(set(names)) == len(names)
    assert names[0] == Arm(1, 0.1).remedy  # the plain large batch is the first candidate
    for remedy in all_remedies():
        assert set(remedy.sources) <= set(REFERENCES)
        assert set(remedy.sets) <= set(PARTS)
        for sentence in (remedy.changes, remedy.cost):
            assert sentence.endswith(".")
        assert by_name(remedy.name) == remedy


def test_parameters_are_part_of_the_name() -> None:
    remedy = LinearScaling(warm_up_epochs=2.0)
    assert remedy.name == "linear scaling (warm_up_epochs=2.0)"
    assert by_name(remedy.name) == remedy
    longer = dataclasses.replace(remedy, warm_up_share=0.5)
    assert by_name(longer.name) == longer


@pytest.mark.parametrize(
    "text", ["", "magic", "linear scaling (speed=2)", "linear scaling (2)", "linear scaling (a=b)"]
)
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected"):
        by_name(text)


def test_two_rules_for_the_learning_rate_are_refused() -> None:
    with pytest.raises(CannotAnswer, match="both set the learning rate"):
        together(LinearScaling(), SquareRootScaling())
    with pytest.raises(CannotAnswer, match="change something"):
        together(LinearScaling(), Tuned())
    assert together(LinearScaling()) == LinearScaling()


def test_what_sets_no_rate_leaves_it_to_the_rest() -> None:
    """Whatever the order they are named in: the optimiser first, the rule for the rate last."""
    alone = LinearScaling().apply(toy(), TOY)
    for text in ("label smoothing + linear scaling", "weight averaging + linear scaling + label smoothing"):
        assert by_name(text).apply(toy(lr=7.0), TOY).lr == alone.lr
    assert by_name("weight averaging + label smoothing").apply(toy(lr=7.0), TOY).lr == TOY.own_learning_rate
    both = by_name("square-root scaling + second-moment half-life in examples")
    assert "got SGD" in (both.why_not(toy(), TOY) or "")
    assert both.changes.count(".") == 2


def test_what_counts_in_steps_does_not_go_with_a_batch_that_grows() -> None:
    for name in ("weight averaging", "weight decay rescaled", "second-moment half-life in examples"):
        with pytest.raises(CannotAnswer, match="expected a batch of one size"):
            by_name(f"growing batch + {name}")
    assert by_name("growing batch + label smoothing").sets == ("batch size", "learning rate", "loss")


def test_the_loss_is_changed_before_its_gradient_is_taken_uphill() -> None:
    task = toy()
    assert by_name("SAM + label smoothing").why_not(task, TOY) is None
