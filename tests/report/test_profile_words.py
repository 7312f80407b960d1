"""Does a profile say what was measured, exactly and the same way everywhere?"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_profile import (
    GIB,
    MIB,
    around,
    loader_bound,
    memory_profile,
    nothing_fits,
    one_size,
    one_window,
    profile,
    without_memory,
)

from batchscope.records import Conditions, Engine, Measured, Split
from batchscope.report import profile_words as said
from batchscope.report import words
from batchscope.report.profile_facts import engine_of, facts_of, flops_of, methods_of, notes_of

SCALES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1536, "1.50 KiB"),
        (1010 * MIB, "0.986 GiB"),
        (999 * MIB, "999 MiB"),
        (int(999.7 * MIB), "0.976 GiB"),
        (1.02 * GIB, "1.02 GiB"),
        (80 * GIB, "80.0 GiB"),
        (None, "–"),
        (math.nan, "–"),
    ],
)
def test_bytes(amount: float | None, text: str) -> None:
    assert said.size_of(amount) == text


@given(st.integers(0, 2**49))
def test_bytes_have_three_digits_and_are_within_half_a_unit_of_the_third(amount: int) -> None:
    digits, unit = said.size_of(amount).split()
    assert abs(float(digits) * SCALES[unit] - amount) <= 0.00501 * amount
    assert len(digits.replace(".", "").lstrip("0")) <= 3


@pytest.mark.parametrize(
    ("m", "text"),
    [
        (Measured(5312, 5000, 6000, 10), "5,312 [5,000-6,000]"),
        (Measured(5312, 256, None, 10), "5,312 [> 256]"),
        (Measured(5312, None, 9999, 10), "5,312 [< 9,999]"),
        (Measured(5312, None, None, 1), "5,312"),
    ],
)
def test_a_size_is_exact(m: Measured, text: str) -> None:
    assert said.size_interval(m) == text


def test_sizes_are_told_as_runs_of_neighbours() -> None:
    assert said.runs_of([1, 2, 4, 8, 16], [1, 2, 8, 16]) == "1-2 and 8-16"
    assert said.runs_of([1, 2, 4], [4]) == "4"
    assert said.runs_of([1, 2, 4, 8], [1, 4, 8]) == "1 and 4-8"


def test_the_largest_that_ran_comes_first_with_its_peak_and_the_limit() -> None:
    first, why, *_ = said.answer_sentences(profile())
    assert first == "The largest micro-batch under 1.00 GiB is 5,312 (ran; peak 0.993 GiB)."
    assert why == "A micro-batch of 5,312 fits, 5,504 does not: it needs more than the limit."


def test_the_peak_of_the_answer_is_that_of_the_size_that_is_named() -> None:
    memory = memory_profile(largest_micro_batch_size=4096)
    (first, *_) = said.memory_sentences(memory)
    assert "is 4,096 (ran; peak 862 MiB)" in first


def test_not_even_one_example_fits() -> None:
    memory, why, seconds = said.answer_sentences(nothing_fits())
    assert memory == "No micro-batch that was tried fits under 300 MiB, down to 1."
    assert why == "Not even a micro-batch of 1 fits."
    assert "not measured" in seconds


def test_without_memory_the_answer_says_so_and_still_has_its_knee() -> None:
    sentences = said.answer_sentences(without_memory())
    assert sentences[0].startswith("Memory was not measured")
    assert sentences[1].startswith("The knee is 1,024 [512-1,024]: ")
    assert "below the memory ceiling" not in sentences[1]


def test_the_knee_is_held_against_the_highest_throughput_below_the_ceiling() -> None:
    result = profile(memory=memory_profile(500 * MIB, (64, 1024, 2048)))
    row = next(r for r in result.rows if r.micro_batch_size == 1024)
    assert said.highest(result) == row
    assert f"{said.measured(row.units_per_second)} examples per second at 1,024" in said.knee_sentences(result)[0]


def test_a_knee_without_interval_says_so_and_one_that_is_not_known_says_why() -> None:
    assert "1,024, without an interval: " in said.knee_sentences(one_window())[0]
    assert "64, without an interval: " in said.knee_sentences(one_size())[0]
    nowhere = profile(knee=Measured(None, None, None, 0, 0, "none: no batch size up to the ceiling was timed"))
    assert said.knee_sentences(nowhere) == ["No knee was found: no batch size up to the ceiling was timed."]


def test_a_knee_at_the_edge_of_what_was_measured_may_lie_beyond_it() -> None:
    def limits(**changes: Any) -> list[str]:
        return said.knee_sentences(profile(**changes))[1:]

    told = "Throughput still rises at the largest size measured, 4,096: the knee may lie beyond it."
    assert limits() == [told]  # up to 5,312 would fit
    assert limits(memory=memory_profile(tried=(64, 4096, 5504), largest_micro_batch_size=4096)) == []
    assert limits(sizes=(64,)) == []
    assert limits(rows=(*profile().rows[:-1], dataclasses.replace(profile().rows[0], micro_batch_size=4096))) == []


def test_a_note_that_the_answer_says_already_is_not_repeated() -> None:
    told = said.edge_sentences(profile())[0]
    assert notes_of(profile(notes=(told, "another"))) == ["another"]


def test_a_loader_bound_task_is_named_as_such() -> None:
    said_of = " ".join(said.bound_sentences(loader_bound()))
    assert "At every size measured, a step is bound by waiting for data." in said_of
    assert "The task is loader-bound: at 8, data that cost nothing would save 72.0 % of a step" in said_of
    mixed = " ".join(said.bound_sentences(profile()))
    assert mixed == "A step is bound by the optimiser at 8 and by compute (forward and backward) at 16-4,096."
    assert said.bound_sentences(profile(phases=False)) == []


def split(micro: int, accumulation: int, took: float, measured: bool = True, over: Measured | None = None) -> Split:
    return Split(64, micro, accumulation, around(took), measured, over)


def test_the_own_batch_size_is_split_the_fastest_way() -> None:
    halves, whole = split(32, 2, 0.003, over=around(1.5)), split(64, 1, 0.002)
    (text,) = said.split_sentences(profile(splits=(halves, whole)))
    assert text == "The task's own batch size, 64, is fastest in one pass: 2.00 ms a step (measured)."
    (text,) = said.split_sentences(profile(splits=(halves, split(16, 4, 0.004))))
    assert "fastest as 32 × 2: 3.00 ms a step (measured), 1.50 [1.47-1.53] times the whole batch's." in text
    assert said.split_sentences(profile(splits=())) == []


def test_whose_loop_the_seconds_belong_to() -> None:
    assert words.loop_of("batchscope") == "Batchscope's own training loop"
    assert words.loop_of("my\x1b loop") == "the loop named “my\ufffd loop”"


def test_switches_of_the_engine_are_told_in_words() -> None:
    assert engine_of(Engine()).startswith("no switch on")
    every = Engine(**{f.name: True for f in dataclasses.fields(Engine)})
    assert engine_of(every) == "channels last, torch.compile, CUDA graphs replayed and next batch prefetched"


def test_what_was_not_measured_is_said() -> None:
    facts = dict(facts_of(without_memory()))
    assert facts["Energy"] == "not measured"
    assert facts["Memory"] == "not measured"
    assert "utilisation not measured: the device's peak is not known" in facts["FLOPs"]
    assert flops_of(profile(flops=None)) == "not counted"
    assert "989 TFLOP/s (the maker's data sheet, bf16, dense)" in flops_of(profile(cuda=True))
    assert dict(facts_of(nothing_fits()))["Timing"] == "not measured"


def test_the_facts_tell_the_fits_with_their_residuals() -> None:
    facts = dict(facts_of(profile()))
    assert "a = 0.337 ms [0.320-0.354], c = 5.00 µs per example [4.95-5.05], s = 90 [63-117]" in facts["Step time"]
    assert "largest residual 1.00 %" in facts["Step time"]
    assert facts["Memory fit"].startswith("peak(b) = 342 MiB + 130 KiB · b, over 5 probes from 64 to 6,144; largest")
    two = memory_profile(tried=(64, 4096))
    assert dict(facts_of(profile(memory=two)))["Memory fit"].endswith("from 64 to 4,096; two sizes leave no residual.")
    assert "10 rounds per size" in facts["Timing"]
    assert "drifted by 2.10 %" in facts["Timing"]


def test_memory_that_was_measured_under_other_conditions_says_so() -> None:
    assert "Memory conditions" not in dict(facts_of(profile()))
    other = profile(memory=memory_profile(conditions=Conditions(threads=7)))
    assert "7 threads" in dict(facts_of(other))["Memory conditions"]


def test_methods_name_the_quantities_that_used_them_and_notes_come_once() -> None:
    methods = methods_of(profile())
    assert methods["t on logs of 10 rounds, 9 df"][:3] == ["seconds per step", "throughput", "phases"]
    assert methods["bootstrap over 10 rounds"] == ["knee"]
    result = profile(notes=("a", "b"))
    assert notes_of(dataclasses.replace(result, data=dataclasses.replace(result.data, notes=("b", "c")))) == list("abc")
