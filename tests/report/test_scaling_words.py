"""Does `scale` say what was measured, what was predicted and what nobody knows?"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import pytest
from made_up_scaling import ALL, alone, coupled, described, joined, nothing_hidden, unreached, unstudied

from batchscope.records import Measured, ScalingResult
from batchscope.report import scaling_words as said
from batchscope.report.scaling_facts import facts_of, methods_of


def text_of(result: ScalingResult) -> str:
    """All sentences."""
    return " ".join(said.sentences_of(result))


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_two_to_six_paragraphs_without_a_hole(make: Callable[[], ScalingResult]) -> None:
    result = said.worded(make())
    assert 2 <= len(result.sentences) <= 6
    for sentence in result.sentences:
        assert sentence[0].isupper()
        assert sentence.endswith(".")
        assert not re.search(r"\b(nan|None|n/a|inf)\b|  |\.\.", sentence)
    assert dataclasses.replace(result, sentences=()) == dataclasses.replace(make(), sentences=())


def test_strong_and_weak_scaling_are_told_apart_with_their_intervals() -> None:
    steps, *_ = said.sentences_of(joined())
    strong, weak = steps.split("With the batch of each device fixed (weak scaling), ")
    rows = {r.batch_size: r for r in joined().rows if r.devices == 4}
    slow, fast = rows[8].strong_speedup, rows[256].strong_speedup
    assert slow is not None
    assert slow.estimate is not None
    assert slow.high is not None
    assert fast is not None
    assert fast.estimate is not None
    assert strong.startswith("With the global batch fixed and divided (strong scaling), a step on 4 devices is ")
    assert f"{1 / slow.estimate:.2f} times as slow (95 % interval {1 / slow.high:.2f} to" in strong
    assert f"and {fast.estimate:.2f} times as fast ({fast.low:.2f} to {fast.high:.2f}) at batch size 256" in strong
    low = rows[32].weak_efficiency
    assert low is not None
    assert low.estimate is not None
    assert weak.startswith(f"4 devices reach {100 * low.estimate:.3g} %")
    assert "with 8 examples each and" in weak
    assert weak.endswith("with 64 examples each of 4 times one device's throughput.")


@pytest.mark.parametrize(
    ("speedup", "text"),
    [
        (Measured(2.0, 1.8, 2.2, 5), "2.00 times as fast (1.80 to 2.20)"),
        (Measured(0.5, 0.4, 0.8, 5), "2.00 times as slow (1.25 to 2.50)"),
        (Measured(1.02, 0.9, 1.2, 5), "not clearly faster or slower, 1.02 times as fast (0.90 to 1.20),"),
        (Measured(2.0, None, None, 1), "not clearly faster or slower, 2.00 times as fast (without an interval),"),
    ],
)
def test_faster_slower_or_not_clear(speedup: Measured, text: str) -> None:
    assert said.faster(speedup) == text


def test_exposed_averaging_is_a_share_of_the_step() -> None:
    row = next(r for r in joined().rows if (r.devices, r.batch_size) == (4, 8))
    assert row.exposed.estimate is not None
    assert row.seconds_per_step.estimate is not None
    share = 100 * row.exposed.estimate / row.seconds_per_step.estimate
    averaging = said.sentences_of(joined())[1]
    assert averaging.startswith("Averaging 97.7 KiB of gradients over 4 devices, as far as computing does not hide it,")
    assert f"takes {share:.2g} % (95 % interval" in averaging
    assert "%) of a step at batch size 8 and" in averaging
    assert said.sentences_of(nothing_hidden())[1].count("takes 0 % (95 % interval below") == 1


def test_the_goal_says_what_is_measured_and_what_is_predicted() -> None:
    goal = said.sentences_of(joined())[2]
    measured, predicted = goal.split("; these seconds are measured. ")
    for n in ("1 device", "2 devices", "4 devices"):
        assert f" on {n}" in measured
    assert predicted.startswith("For 8 device counts from 8 to 1,024 they are predicted, the least of them ")
    assert "times as fast as one device (" in predicted
    best = min((c for c in joined().choices if not c.measured), key=lambda c: c.seconds_to_goal.estimate or 9.0)
    assert f"with batch size {best.batch_size:,} (its steps extrapolated) on {best.devices} devices" in predicted


def test_few_counts_are_named_one_by_one() -> None:
    choices = tuple(c for c in joined().choices if c.devices in (1, 8, 16))
    assert "For 8 and 16 devices they are predicted" in text_of(dataclasses.replace(joined(), choices=choices))


def test_past_which_count_more_buy_nothing() -> None:
    useful = joined().most_useful
    text = text_of(joined())
    assert (
        f"More than {useful} devices buy nothing (as predicted): no larger number, up to 1,024, is more than 5 %"
        in text
    )
    assert re.search(r"The critical batch size sets it, \d+ examples \(95 % interval", text)
    assert "More than one device buys nothing" in text_of(nothing_hidden())
    assert "is not resolved" in text_of(nothing_hidden())
    assert "Even 64 devices, the most considered, are more than 5 % faster than any fewer" in text_of(described())
    lawless = dataclasses.replace(joined(), critical_batch_size=None)
    assert "no law was fitted" in text_of(lawless)


def test_what_was_all_measured_is_not_called_predicted() -> None:
    choices = tuple(c for c in joined().choices if c.measured)
    result = dataclasses.replace(joined(), choices=choices, predictions=(), most_useful=1)
    text = text_of(result)
    assert "More than one device buys nothing: no larger number, up to 4," in text
    assert "predict" not in text


def test_what_was_not_measured_is_said() -> None:
    text = text_of(joined())
    assert "Beyond 4 devices nothing was measured" in text
    assert "a guessed error of 5 % for each doubling" in text
    assert "larger than any trained follow the study's law" in text
    assert "cores of one machine that share its memory" in text
    assert "run `batchscope study`, then `batchscope scale` again" in text_of(unstudied())
    assert "study abc123 has no steps to it" in text_of(unreached())
    assert "batch norm" in text_of(coupled())
    assert "cores of one machine" not in text_of(coupled())
    assert "link that was described, which was not measured" in text_of(described())
    assert "Steps were timed on one device only" in text_of(alone())


def test_facts_and_methods() -> None:
    facts = dict(facts_of(joined()))
    assert facts["Devices"].startswith("1, 2 and 4 timed, at global batch sizes 8, 16, 32, 64, 128 and 256")
    assert "5 rounds" in facts["Timing"]
    assert facts["Gradient"] == "97.7 KiB are averaged at every step, in one piece"
    link = dict(facts_of(described()))["Link"]
    assert link.endswith("for the link described, latency 5.00 µs, bandwidth 20,000 MB/s")
    assert "abc123" in facts["Steps to the goal"]
    used = [name for names in methods_of(joined()).values() for name in names]
    assert {"seconds per step", "bandwidth", "overlap", "seconds to goal", "critical batch size"} <= set(used)
    assert sum(map(len, methods_of(alone()).values())) == 1
