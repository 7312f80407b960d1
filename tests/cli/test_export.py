"""Does `export` write all that was measured, as CSV or as the record, bit for bit?"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from batchscope.analysis.matching import analyse_match
from batchscope.records import (
    AdviceData,
    GradientNorms,
    Line,
    MatchData,
    NoiseRun,
    PointSharpness,
    ProfileData,
    ScalingData,
    SharpnessData,
    Tried,
    from_plain,
    json_safe,
    to_plain,
)
from batchscope.store import open_store
from batchscope.testing.example_match import make_match_data, make_small_match
from batchscope.testing.example_noise import make_noise_run
from batchscope.testing.example_profiles import PHASED, SPLITS, make_profile
from batchscope.testing.example_scaling import make_scaling_data, make_scaling_pass
from batchscope.testing.example_sharpness import make_file_point, make_point, make_sharpness_data
from batchscope.testing.examples import make_settings
from batchscope.testing.store_advice import make_advice_data

from .conftest import Here


def test_the_csv_of_a_profile_holds_every_window(here: Here, profile_id: str) -> None:
    ended = here("export", profile_id[:11])
    rows = list(csv.DictReader(io.StringIO(ended.out)))
    assert ended.out.splitlines()[0] == "kind,batch_size,micro_batch_size,phase,round,seconds"

    def windows(*head: object, phase: str) -> tuple[float, ...]:
        found = [row for row in rows if [*row.values()][:4] == [*map(str, head), phase]]
        assert [int(row["round"]) for row in found] == list(range(len(found)))
        return tuple(float(row["seconds"]) for row in found)

    expected = 0
    for timing in PHASED.timings:
        for phase, seconds in {
            "whole": timing.seconds_per_step,
            "reference": timing.reference,
            **timing.phases,
        }.items():
            assert windows("step", timing.batch_size, timing.batch_size, phase=phase) == seconds
            expected += len(seconds)
    for split in SPLITS:
        for phase, seconds in {"whole": split.seconds_per_step, "reference": split.reference}.items():
            assert windows("split", split.batch_size, split.micro_batch_size, phase=phase) == seconds
            expected += len(seconds)
    assert len(rows) == expected


def test_the_csv_of_a_profile_without_timings_is_its_header(here: Here) -> None:
    with open_store("batchscope.db") as store:
        bare = store.save_profile(make_profile(timing=None, splits=()))
    assert here("export", bare).out.splitlines() == ["kind,batch_size,micro_batch_size,phase,round,seconds"]


def test_the_csv_of_a_noise_run_holds_every_measurement(here: Here, noise_id: str) -> None:
    out = here("export", noise_id[:11]).out
    assert out.splitlines()[0] == (
        "step,examples,parts,part_size,batch_size,mean_squared,parts_squared,loss,learning_rate,steps"
    )
    rows = [{k: json.loads(v or "null") for k, v in row.items()} for row in csv.DictReader(io.StringIO(out))]
    assert from_plain(tuple[GradientNorms, ...], rows) == make_noise_run().measurements


def test_the_json_of_a_noise_run_is_the_record(here: Here, noise_id: str) -> None:
    assert from_plain(NoiseRun, json.loads(here("export", noise_id, "--json").out)) == make_noise_run()


def test_the_csv_of_an_advice_holds_every_trial(here: Here, advice_id: str) -> None:
    out = here("export", advice_id[:11]).out
    assert out.splitlines()[0] == (
        "role,batch_size,learning_rate,seed,reached,bound,provisional,lowest_loss,outcome,examples,steps,ended_by"
    )
    texts = ("role", "outcome", "ended_by")
    rows = [
        {k: v if k in texts else json.loads(v or "null") for k, v in row.items()}
        for row in csv.DictReader(io.StringIO(out))
    ]
    assert from_plain(tuple[Tried, ...], rows) == make_advice_data().trials


def test_the_json_of_an_advice_is_the_record(here: Here, advice_id: str) -> None:
    assert from_plain(AdviceData, json.loads(here("export", advice_id, "--json").out)) == make_advice_data()


def test_the_json_of_a_profile_is_the_record(here: Here, profile_id: str) -> None:
    assert from_plain(ProfileData, json.loads(here("export", profile_id, "--json").out)) == make_profile()


def test_the_export_of_a_study_has_the_profile_that_applies_to_it(here: Here, tmp_path: Path) -> None:
    with open_store(tmp_path / "batchscope.db") as store:
        study = store.save_study(make_settings())
        assert json.loads(here("export", study, "--json").out)["profile"] is None
        store.save_profile(make_profile())
    exported = json.loads(here("export", study, "--json").out)
    assert from_plain(ProfileData, exported["profile"]) == make_profile()
    assert here("export", study).out.startswith("role,batch_size,learning_rate,seed")


def test_the_csv_of_a_scaling_holds_every_window(here: Here) -> None:
    timing = make_scaling_pass(counts=(1, 2), batch_sizes=(1, 32), rounds=3)
    with open_store("batchscope.db") as store:
        scaling_id = store.save_scaling(make_scaling_data(timing=timing))
    lines = here("export", scaling_id[:11]).out.splitlines()
    assert lines[0] == "devices,batch_size,bytes,phase,round,seconds"
    expected = []
    for one, windows in zip((1, 2), timing.passes, strict=True):
        for w in windows.timings:
            assert (one, sorted(w.phases)) in ((1, []), (2, ["alone"]))
            for phase, seconds in {"whole": w.seconds_per_step, "reference": w.reference, **w.phases}.items():
                expected += [f"{one},{w.batch_size},,{phase},{k},{seconds[k]!r}" for k in range(3)]
    assert len(expected) == 2 * 2 * 3 + 3 * 3  # a batch of one example is not divided
    for bare in timing.all_reduces:
        expected += [f"2,,{bare.bytes},all-reduce,{k},{bare.seconds[k]!r}" for k in range(3)]
    assert lines[1:] == expected


def test_the_csv_of_a_scaling_without_windows_is_its_header(here: Here) -> None:
    with open_store("batchscope.db") as store:
        bare = store.save_scaling(make_scaling_data(counts=(), batch_sizes=()))
    assert here("export", bare).out.splitlines() == ["devices,batch_size,bytes,phase,round,seconds"]


def test_the_json_of_a_scaling_is_the_record(here: Here, scaling_id: str) -> None:
    assert from_plain(ScalingData, json.loads(here("export", scaling_id, "--json").out)) == make_scaling_data()


SHARPNESS_HEADER = "kind,label,batch_size,policy,learning_rate,seed,measure,part,place,value,low,high"


def sharpness_rows(here: Here, data: SharpnessData) -> list[dict[str, str]]:
    """The lines of the CSV, whose header is as it should be."""
    with open_store("batchscope.db") as store:
        sharpness_id = store.save_sharpness(data)
    out = here("export", sharpness_id[:11]).out
    assert out.splitlines()[0] == SHARPNESS_HEADER
    return list(csv.DictReader(io.StringIO(out)))


def values_of(point: PointSharpness) -> dict[tuple[str, str, str], list[float | None]]:
    """(measure, part, place) -> value, low, high of what the CSV holds of a point, the boxes' places apart."""
    numbers = {name: getattr(point, name) for name in ("loss", "gradient_norm", "distance", "initial_norm")}
    numbers |= {"adaptive_sharpness": point.adaptive_sharpness, "step": point.step, "examples": point.examples}
    found = {(name, "", ""): [value, None, None] for name, value in numbers.items()}
    for part, metrics in (("train", point.metrics), ("validation", point.validation), ("test", point.test or {})):
        found |= {(name, part, ""): [value, None, None] for name, value in metrics.items()}
    measured = ("largest_eigenvalue", "smallest_eigenvalue", "trace", "adaptive_eigenvalue", "batch_sharpness")
    for name in measured:
        if (m := getattr(point, name)) is not None:
            found[name, "", ""] = [m.estimate, m.low, m.high]
    for layer in point.layers:
        for name in ("distance", "initial_norm", "norm"):
            found[name, layer.name, ""] = [getattr(layer, name), None, None]
    return found


def test_the_csv_of_a_sharpness_holds_every_measure_of_every_point(here: Here) -> None:
    points = (make_point(32, "tuned", 2), make_point(512, test=None, trace=None), make_file_point("a, b"))
    rows = sharpness_rows(here, make_sharpness_data(points=points, lines=(), continued=()))
    assert {row["kind"] for row in rows} == {"point"}
    for point in points:
        of = [row for row in rows if row["label"] == point.label]
        shown = ("" if v is None else f"{v}" for v in (point.batch_size, point.policy, point.learning_rate, point.seed))
        head = dict(zip(("batch_size", "policy", "learning_rate", "seed"), shown, strict=True))
        assert all(row | head == row for row in of)
        boxes = [row for row in of if "box_" in row["measure"]]
        assert [(row["measure"], row["part"], float(row["place"]), float(row["value"])) for row in boxes] == [
            (f"{which}_{name}", box.space, box.epsilon, getattr(box, name))
            for which, some in (("box", point.boxes), ("subset_box", point.subset_boxes))
            for box in some
            for name in ("percent", "examples", "iterations")
        ]
        found = {
            (row["measure"], row["part"], row["place"]): [row[name] for name in ("value", "low", "high")]
            for row in of
            if row not in boxes
        }
        expected = {key: ["" if v is None else repr(v) for v in values] for key, values in values_of(point).items()}
        assert found == {key: values for key, values in expected.items() if any(values)}
        assert len(found) + len(boxes) == len(of)
    assert len({row["label"] for row in rows}) == 3


def test_the_csv_of_a_sharpness_holds_causal_runs_and_lines(here: Here) -> None:
    data = make_sharpness_data(points=())
    rows = sharpness_rows(here, data)
    for run in data.continued:
        of = {(row["measure"], row["part"]): row["value"] for row in rows if row["kind"] == run.kind}
        assert float(of["reached_loss", ""]) == run.reached_loss
        expected = (str(run.from_batch_size), repr(run.from_epochs), repr(run.share))
        assert (of["from_batch_size", ""], of["from_epochs", ""], of["share", ""]) == expected
        assert float(of["accuracy", "validation"]) == run.point.validation["accuracy"]
    found = [row for row in rows if row["kind"] in ("straight", "curved", "slice")]
    drawn = [
        [line.kind, " to ".join(line.labels), "", "", "", "", metric, part, repr(place), repr(value), "", ""]
        for line in data.lines
        for part, curves in (("train", line.train), ("validation", line.validation))
        for metric, values in curves.items()
        for place, value in zip(line.places, values, strict=True)
    ]
    assert [[*row.values()] for row in found] == drawn
    assert len(drawn) == 3 * 3 * 5


def test_the_csv_of_a_sharpness_without_points_is_its_header(here: Here) -> None:
    assert sharpness_rows(here, make_sharpness_data(points=(), lines=(), continued=())) == []


def test_the_json_of_a_sharpness_is_the_record(here: Here, sharpness_id: str) -> None:
    """With null for what JSON cannot hold."""
    exported = json.loads(here("export", sharpness_id, "--json").out)
    assert exported == json_safe(to_plain(make_sharpness_data()))
    assert from_plain(PointSharpness, exported["points"][0]) == make_point()
    assert from_plain(Line, exported["lines"][0]).train["loss"][-1] is None


MATCH_HEADER = "kind,role,batch_size,remedy,learning_rate,seed,outcome,ended_by,examples,part,metric,value,low,high"


def match_rows(here: Here, data: MatchData) -> list[dict[str, str]]:
    """The lines of the CSV, whose header is as it should be."""
    with open_store("batchscope.db") as store:
        match_id = store.save_match(data)
    out = here("export", match_id[:11]).out
    assert out.splitlines()[0] == MATCH_HEADER
    return list(csv.DictReader(io.StringIO(out)))


def test_the_csv_of_a_match_holds_every_run(here: Here) -> None:
    data = make_match_data((512,), (1, 2))
    rows = match_rows(here, data)
    for run in data.runs:
        head = (run.role, f"{run.batch_size}", run.remedy, repr(run.learning_rate), f"{run.seed}")
        names = ("role", "batch_size", "remedy", "learning_rate", "seed")
        own = [row for row in rows if tuple(row[name] for name in names) == head]
        assert {(row["outcome"], row["ended_by"]) for row in own} == {(run.outcome, run.ended_by)}
        losses = [(int(row["examples"]), float(row["value"])) for row in own if row["kind"] == "evaluation"]
        assert losses == list(run.losses)
        known = {(row["part"], row["metric"]): float(row["value"]) for row in own if row["kind"] == "run"}
        expected = {("validation", name): v for name, v in run.validation.items()} | {("training", "steps"): run.steps}
        expected |= {("test", name): v for name, v in (run.test or {}).items()}
        goal = {"steps_to_goal": run.steps_to_goal, "examples_to_goal": run.examples_to_goal}
        expected |= {("training", name): v for name, v in goal.items() if v is not None}
        assert known == expected
    windows = [float(row["value"]) for row in rows if (row["kind"], row["metric"]) == ("window", "whole")]
    assert windows == [s for t in data.timings for one in t.timing.timings for s in one.seconds_per_step]


def test_the_csv_of_a_match_holds_every_row_of_its_answer(here: Here) -> None:
    data = make_match_data((512,))
    result = analyse_match(data)
    found = {
        (row["role"], row["remedy"], row["part"], row["metric"]): row
        for row in match_rows(here, data)
        if row["kind"] == "row"
    }
    for row in (result.baseline, *result.untuned, *result.rows):
        excess = found[row.role, row.remedy, "validation", "excess"]
        assert [float(excess[name]) for name in ("value", "low", "high")] == [
            row.excess.estimate,
            row.excess.low,
            row.excess.high,
        ]
        assert excess["outcome"] == row.verdict
        assert float(found[row.role, row.remedy, "", "reached"]["value"]) == row.reached
        for n, m in row.seconds_to_goal.items():
            told = found[row.role, row.remedy, "training", f"seconds_to_goal_on_{n}"]["value"]
            assert (float(told) if told else None) == m.estimate
    assert result.rows[0].seconds_to_goal


def test_the_csv_of_a_match_without_runs_is_its_header(here: Here) -> None:
    assert match_rows(here, make_small_match(runs=())) == []


def test_the_json_of_a_match_is_the_record(here: Here, match_id: str) -> None:
    assert json.loads(here("export", match_id, "--json").out) == json_safe(to_plain(make_match_data()))
