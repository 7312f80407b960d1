"""Is the profile's answer complete, strict JSON, the same every time, and does it say what limits it?"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from batchscope.analysis.memory import fit_memory
from batchscope.analysis.profile import analyse_profile, profile_to_json
from batchscope.analysis.splits import fastest_split, measured_splits
from batchscope.analysis.step_time import fit_step_time, knee, rows_of
from batchscope.records import (
    Conditions,
    FlopCount,
    MemoryProbe,
    MemoryProfile,
    ProfileData,
    SplitTiming,
    StepTiming,
    TimingPass,
    from_plain,
    to_plain,
)
from batchscope.testing.example_profiles import make_profile

MB, SIZES = 10**6, (8, 16, 32, 64, 128, 256)


def timing(wait: float = 0.0, per_example: float = 1e-5, overhead: float = 1e-3, rounds: int = 10) -> TimingPass:
    """Steps of overhead + per_example b, of which the optimiser takes a fifth; `wait` seconds an example beside."""

    def one(b: int) -> StepTiming:
        resident = overhead + per_example * b
        phases = {
            "data": (wait * b,) * rounds,
            "resident": (resident,) * rounds,
            "backward": (0.8 * resident,) * rounds,
        }
        return StepTiming(b, 10, (resident + wait * b,) * rounds, (1e-3,) * rounds, phases)

    return TimingPass(64, tuple(one(b) for b in SIZES), Conditions())


def memory(largest: int | None = 256, **changes: Any) -> MemoryProfile:
    """100 MB and 1 MB an example."""
    sizes = (64, largest) if largest else (1,)
    outcome = "fits" if largest else "out_of_memory"
    probes = tuple(MemoryProbe(b, outcome, "", (100 + b) * MB, checkpoint_bytes=MB) for b in sizes)
    why = "A micro-batch fits." if largest else "Not even a micro-batch of 1 fits: out of memory."
    return replace(MemoryProfile(10**9, "", "", "", probes, largest, "memory", why, Conditions()), **changes)


def data(**changes: Any) -> ProfileData:
    made = ProfileData(
        "a task", "f" * 16, 256, 64, Conditions(), timing=timing(), memory=memory(), examples=10, steps=2, seconds=3.5
    )
    return replace(made, **changes)


def test_the_answer_is_that_of_its_parts() -> None:
    made = data(
        flops=FlopCount(1e6, 64, 1e12, "sheet"),
        unit="tokens",
        units_per_example=3.0,
        splits=(SplitTiming(64, 16, (9e-3,) * 5, (1e-3,) * 5), SplitTiming(64, 64, (2e-3,) * 5, (1e-3,) * 5)),
    )
    result = analyse_profile(made)
    assert made.timing is not None
    assert made.memory is not None
    assert result.rows == rows_of(made.timing, 3.0, made.flops, made.memory.probes)
    assert result.step_time == fit_step_time(made.timing)
    assert result.knee == knee(made.timing, 256)
    assert result.splits == measured_splits(made.splits, made.timing)
    assert result.memory is not None
    assert result.memory.fit == fit_memory(made.memory.probes)
    assert (result.loop, result.unit, result.data) == ("batchscope", "tokens", made)
    assert analyse_profile(made) == result
    assert [r.predicted_peak_bytes for r in result.rows] == [(100 + b) * MB for b in SIZES]


def test_a_fit_that_was_stored_is_kept() -> None:
    stored = make_profile()
    assert analyse_profile(stored).memory == stored.memory


def test_the_own_batch_size_has_a_split_where_none_was_timed() -> None:
    made = data(own_batch_size=100)
    (only,) = analyse_profile(made).splits
    assert only == fastest_split(made, 100)
    assert not only.measured
    assert analyse_profile(data(memory=memory(None))).splits == ()


def test_json_is_strict_complete_and_keeps_the_windows() -> None:
    made = make_profile()
    result = replace(analyse_profile(made), report="page.html")
    plain = json.loads(json.dumps(profile_to_json(result), allow_nan=False))
    names = (
        "task fingerprint unit loop rows step_time knee splits memory flops energy conditions spent notes report data"
    )
    assert set(names.split()) <= set(plain)
    assert plain["spent"] == {"examples": 4096, "steps": 99, "seconds": 12.25}
    assert plain["memory"]["largest_micro_batch_size"] == 64
    assert {"limit_bytes", "limit_is", "binding", "reason", "probes", "fit"} <= set(plain["memory"])
    assert plain["knee"] == result.knee.to_json()
    assert [row["micro_batch_size"] for row in plain["rows"]] == [32, 64]
    assert plain["flops"]["per_example"] == 1.5e6
    assert plain["flops"]["utilization"]["32"] == plain["rows"][0]["flops_utilization"]
    assert plain["energy"]["joules_per_example"]["32"]["estimate"] == pytest.approx(0.055 / 32)
    assert plain["energy"]["joules_per_example"]["64"] is None
    assert plain["report"] == "page.html"
    assert from_plain(TimingPass, plain["data"]["timing"]) == made.timing
    assert from_plain(tuple[SplitTiming, ...], plain["data"]["splits"]) == made.splits
    assert plain["data"]["batch_sizes"] == [32, 64]


def test_json_of_a_profile_with_nothing_in_it() -> None:
    result = analyse_profile(data(timing=None, memory=None))
    plain = json.loads(json.dumps(profile_to_json(result), allow_nan=False))
    assert (plain["rows"], plain["step_time"], plain["memory"], plain["flops"]) == ([], None, None, None)
    assert plain["knee"]["estimate"] is None
    assert any("No seconds per step were measured" in note for note in plain["notes"])


def test_a_number_that_json_cannot_hold_is_null() -> None:
    result = analyse_profile(data(seconds=float("nan"), units_per_example=float("inf")))
    plain = profile_to_json(result)
    assert plain["spent"]["seconds"] is None
    assert plain["units_per_example"] is None
    assert to_plain(result)["data"]["task"] == "a task"


def notes(**changes: Any) -> str:
    return " ".join(analyse_profile(data(**changes)).notes)


def test_an_ordinary_profile_says_only_where_throughput_ends() -> None:
    assert analyse_profile(data()).notes == (
        "Throughput still rises at the largest size measured, 256: no larger one can be used here.",
    )
    assert analyse_profile(data(timing=timing(overhead=0.0))).notes == ()


def test_drift_is_noted_beyond_a_tenth() -> None:
    assert "drifted by 12 %" in notes(timing=replace(timing(), drift=0.12))
    assert "drifted" not in notes(timing=replace(timing(), drift=0.09))


def test_sizes_that_wait_for_data_are_named() -> None:
    assert "At batch size 128, 256 steps wait for data" in notes(timing=timing(wait=1.5e-5))
    assert "wait for data" not in notes()


def test_the_edge_of_the_throughput_is_named_with_what_lies_beyond() -> None:
    assert "the knee may lie beyond it" in notes(train_size=1000, memory=None)
    assert "the knee may lie beyond it" in notes(train_size=1000, memory=memory(300))
    assert "no larger one can be used here" in notes(train_size=1000, memory=memory(256))


def test_fits_that_do_not_hold_are_noted() -> None:
    bent = timing()
    odd = replace(bent.timings[2], seconds_per_step=(3e-3,) * 10)
    text = notes(timing=replace(bent, timings=(*bent.timings[:2], odd, *bent.timings[3:])))
    assert "use the measured sizes, not the fit" in text
    probes = tuple(MemoryProbe(b, "fits", "", y * MB, checkpoint_bytes=1) for b, y in ((8, 100), (64, 300), (256, 310)))
    assert "off the fitted line" in notes(memory=memory(256, probes=probes))


def test_why_there_is_no_memory_is_noted() -> None:
    assert "Memory was not measured (no probes were run)" in notes(memory=None)
    foreign = notes(memory=None, timing=replace(timing(), loop="mine"))
    assert "a meter in somebody else's loop runs no probes" in foreign
    why = "Memory was not measured: the task is an object."
    assert notes(memory=None, notes=(why,)).count("Memory was not measured") == 1


def test_nothing_that_fits_is_an_answer() -> None:
    result = analyse_profile(data(memory=memory(None)))
    assert "Not even a micro-batch of 1 fits: out of memory." in result.notes
    assert result.knee.estimate is None
    assert "up to the ceiling of 0" in result.knee.interval


def test_sizes_above_the_ceiling_and_unfinished_searches_are_noted() -> None:
    text = notes(memory=memory(64))
    assert "Batch size 128, 256 was timed above the largest that fits the memory limit, 64" in text
    result = analyse_profile(data(memory=memory(64)))
    assert result.knee.estimate is not None
    assert result.knee.estimate <= 64
    assert "The largest micro-batch size may be larger: " in notes(memory=memory(256, binding="probes"))


def test_a_meter_in_another_loop_is_analysed_too() -> None:
    """No reference windows, no phases but the host's wait, as many windows as there were."""
    windows = {16: (2e-3,) * 7, 64: (3e-3,) * 12}
    timings = tuple(StepTiming(b, 5, w, (), {"data": w}) for b, w in windows.items())
    result = analyse_profile(data(memory=None, timing=TimingPass(64, timings, Conditions(), loop="mine")))
    assert result.loop == "mine"
    assert [r.seconds_per_step.n for r in result.rows] == [7, 12]
    assert [r.bound_by for r in result.rows] == ["", ""]
    assert result.knee.estimate == 64.0
    json.dumps(profile_to_json(result), allow_nan=False)
