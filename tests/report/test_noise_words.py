"""Does a noise run say what was measured: a value, a bound or a reason, never 0 or infinity?"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_noise import (
    ALL,
    BATCH,
    TRAIN_SIZE,
    against,
    around,
    at_least,
    bound,
    mixed_windows,
    noise,
    not_enough,
    nothing_measured,
    open_critical,
    principle,
    run,
    scale,
    tokens,
    unswept,
)

from batchscope.records import Measured, NoiseResult, PrinciplePoint
from batchscope.report import noise_words as said
from batchscope.report.noise_facts import facts_of, merged, methods_of, notes_of


@pytest.mark.parametrize(
    ("m", "table", "spelled"),
    [
        (Measured(1240, 1100, 1400, 9), "1,240 [1,100-1,400]", "1,240 examples [1,100-1,400]"),
        (Measured(1240, None, None, 1), "1,240", "1,240 examples"),
        (Measured(None, 900, None, 9, 9), "> 900", "at least 900 examples"),
        (Measured(None, None, 0.08, 9), "< 0.0800", "at most 0.0800 examples"),
        (Measured(-0.01, -0.03, 0.01, 9), "-0.0100 [-0.0300 to 0.0100]", "-0.0100 examples [-0.0300 to 0.0100]"),
    ],
)
def test_a_value_and_a_bound(m: Measured, table: str, spelled: str) -> None:
    assert said.cell(m) == table
    assert said.spelled(m, " examples") == spelled


def test_what_is_not_known_is_a_dash() -> None:
    assert said.cell(None) == said.cell(Measured(None, None, None, 3)) == "–"


def test_the_answer_is_four_lines_the_value_first() -> None:
    average, meaning, sweep, measuring = said.answer_sentences(noise())
    assert average == (
        "The gradient noise scale B_simple = tr(Σ) / |G|², averaged up to the crossing of validation loss at most 0.36 "
        "(at 80,000 examples), is 276 examples [212-359]."
    )
    assert "doubling the batch size nearly halves the steps" in meaning
    assert "proxy for the critical batch size" in meaning
    assert meaning.endswith("The run's own batch size, 64, is below this interval.")
    assert sweep == (
        "The critical batch size B_crit, measured by study abc123def456, is 120 examples [95.0-150]: the proxy is 2.30 "
        "[1.80-2.90] times that, too high here."
    )
    assert measuring == (
        "Source: per-example gradient norms, taken in the backward pass (examples), at 312 steps (at first every one, "
        "later one in 4), worth 190 independent ones; taken alone, 21 % of them put |G|² below 0. About 40 further "
        "measurements would narrow the "
        "interval to ±20 %."
    )


def test_a_bound_is_said_as_one() -> None:
    average, meaning, sweep, measuring = said.answer_sentences(at_least())
    assert "which did not cross validation loss at most 0.36, is at least 2,000 examples: |G|² is not" in average
    assert meaning.endswith("is below this bound.")
    assert "the proxy is at least 13.3 times that, too high here" in sweep
    assert "micro-batches that a step accumulates (micro-batches), at 312 steps (every step)" in measuring
    assert measuring.endswith("How many measurements ±20 % would take cannot be told from these.")


def test_too_few_measurements_give_the_reason_and_no_meaning() -> None:
    average, sweep, measuring = said.answer_sentences(not_enough())
    assert average == (
        "No gradient noise scale can be given over the run: 3 measurements are fewer than 8; measure more steps "
        "(every=1) or follow a longer run."
    )
    assert "`batchscope study TASK --policy tuned` measures it" in sweep
    assert "none of them puts |G|² below 0" in measuring
    none, _, source = said.answer_sentences(nothing_measured())
    assert "over the run, which diverged" in none
    assert source.endswith("at 0 steps (at first every one, later one in 4).")


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_no_answer_is_zero_or_infinite(make: Any) -> None:
    text = " ".join(said.answer_sentences(make()))
    assert "inf" not in text.split()
    assert "is 0 " not in text
    assert "None" not in text
    assert "n/a" not in text


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [
        (Measured(2.3, 1.8, 2.9, 0), "the proxy is 2.30 [1.80-2.90] times that, too high here"),
        (Measured(0.4, 0.3, 0.5, 0), "the proxy is 0.400 [0.300-0.500] times that, too low here"),
        (Measured(1.1, 0.9, 1.4, 0), "the proxy is 1.10 [0.900-1.40] times that, and its interval does not exclude 1"),
        (Measured(None, 3.0, None, 0), "the proxy is at least 3.00 times that, too high here"),
        (Measured(None, 0.3, None, 0), "the proxy is at least 0.300 times that, and its interval does not exclude 1"),
        (Measured(None, None, 0.1, 0), "the proxy is at most 0.100 times that, too low here"),
        (Measured(None, None, None, 0), "the factor between the proxy and it is not resolved"),
        (Measured(2.0, 0.0, None, 0), "the factor between the proxy and it is not resolved"),
    ],
)
def test_the_factor_is_judged_by_its_interval(factor: Measured, verdict: str) -> None:
    assert said.verdict_of(against(factor)) == verdict
    assert said.sweep_sentence(noise(against_sweep=against(factor))).endswith(f": {verdict}.")


def test_a_critical_batch_size_that_is_open_or_not_resolved() -> None:
    assert "is at least 4,100 examples: the proxy is at most 0.0800 times that" in said.sweep_sentence(open_critical())
    for crit in (Measured(None, None, None, 0), Measured(500.0, 0.0, None, 9)):
        text = said.sweep_sentence(noise(against_sweep=against(critical=crit)))
        assert text.endswith("is not resolved, so the proxy cannot be held against it.")
    assert "no tuned study of this task" in said.sweep_sentence(unswept())


@given(own=st.integers(1, 10_000), low=st.floats(1, 5000), width=st.floats(0.01, 5000), closed=st.booleans())
def test_the_own_batch_size_is_placed_on_the_right_side(own: int, low: float, width: float, closed: bool) -> None:
    m = Measured(low + width / 2 if closed else None, low, low + width if closed else None, 9)
    average = dataclasses.replace(scale(1.0, 1.0), b_simple=m, outcome="resolved" if closed else "at_least")
    side = said.side_of(noise(run_average=average, data=run(batch_size=own)))
    assert ("below" in side) == (own < low)
    assert ("above" in side) == (closed and own > low + width)
    assert ("within" in side) == (closed and low <= own <= low + width)


def test_batch_sizes_in_other_units_are_not_compared() -> None:
    assert said.side_of(tokens()) == ""
    assert "this in tokens: they are not compared" in said.sweep_sentence(tokens())
    assert "is 276 tokens [212-359]" in said.average_sentence(tokens())


def test_how_many_more() -> None:
    assert said.needed_sentence(scale(1, 1, needed=0)) == "The interval is as narrow as was asked for (±20 %)."
    assert said.needed_sentence(scale(1, 1, needed=1, precision=0.05)).startswith("About 1 further measurement would")
    assert said.percent(0.025) == "2.5 %"
    assert said.percent(1.0) == "100 %"


def test_shares_of_the_trace_add_up() -> None:
    layers = noise().layers
    shares = {name: said.share_of(s, layers.values()) for name, s in layers.items()}
    assert math.fsum(s for s in shares.values() if s is not None) == pytest.approx(1.0)
    assert shares["hidden.weight"] == pytest.approx(9.0 / (1.2 + 9.0 + 0.3 + 0.9))
    unknown = dataclasses.replace(scale(1, 1), trace=Measured(None, None, None, 1))
    assert said.share_of(unknown, [*layers.values(), unknown]) is None
    assert said.share_of(unknown, [unknown]) is None


def test_facts_tell_the_run_the_source_and_what_was_left_out() -> None:
    facts = dict(facts_of(at_least()))
    assert facts["Run"].startswith("batch size 64, learning rate 0.1, seed 0; goal validation loss at most 0.36, not ")
    assert facts["Source"].startswith("micro-batches: ")
    assert (
        facts["Measured"] == "every step, 384 measurements before clipping; 3 left out, their gradient was not finite"
    )
    assert "Imaginary Processor 9" in facts["Conditions"]
    assert "crossed at 80,000 examples" in dict(facts_of(noise()))["Run"]


def test_methods_name_the_quantities_that_used_them_and_notes_come_once() -> None:
    methods = methods_of(at_least())
    assert methods["t on 16 draws, 15 df"] == ["measured deviations"]
    assert methods["MOVER on the log scale"] == ["B_simple / B_crit"]
    assert "run average" in methods["t on 32 blocks, 24 df"]
    result = noise(notes=("a", "b"), data=run(notes=("b", "c")))
    assert notes_of(result) == ["a", "b", "c"]


def test_methods_that_differ_in_numbers_only_are_one() -> None:
    texts = ["t, 6.72 df, blocks of 2", "t, 39.1 df, blocks of 2", "t, 1,020 df, blocks of 2"]
    assert merged(texts) == "t, 6.72–1,020 df, blocks of 2"
    assert merged(["exact"]) == "exact"
    made = [dataclasses.replace(p.deviation, interval=f"t on {n} draws") for n, p in enumerate(principle(0).points, 3)]
    points = tuple(PrinciplePoint(1, m, around(1.0)) for m in made)
    methods = methods_of(noise(principles=(dataclasses.replace(principle(0), points=points),)))
    assert methods["t on 3–12 draws"] == ["measured deviations"]


def test_windows_without_a_value_are_counted() -> None:
    assert said.unresolved_sentence(noise()) == ""
    told = "Of 12 windows, 3 give only a bound and 1 gives no value and so no mark."
    assert said.unresolved_sentence(mixed_windows()) == told


def test_at_the_whole_data_set_the_prediction_is_zero_even_of_a_bound() -> None:
    result: NoiseResult = at_least()
    (one,) = result.principles
    size = said.data_size_of(one, result.data)
    assert size == TRAIN_SIZE
    last = one.points[-1]
    assert (last.batch_size, said.predicted_cell(last, size)) == (TRAIN_SIZE, "0")
    point = PrinciplePoint(BATCH, around(1.0), Measured(None, 0.5, None, 3))
    assert said.predicted_cell(point, size) == "> 0.500"


def test_a_checkpoint_that_was_not_stored_is_of_the_training_set() -> None:
    assert said.data_size_of(principle(77), run(train_size=123)) == 123


def test_every_proxy_is_explained_as_one() -> None:
    sentences = said.proxy_sentences(noise(proxies={"adam": scale(1, 1), "sign": bound(1, 1), "other": scale(1, 1)}))
    assert len(sentences) == 2
    assert all("proxy" in s for s in sentences)
    assert said.name_of("other") == "“other”"
