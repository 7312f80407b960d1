"""Does `sharpness` say what each measure found, whether they agree, and what else could make the difference?"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable

import pytest
from made_up_flatness import ALL, bare, drawn, files, held, one_seed, whole, worlds

from batchscope.analysis import flatness_measures as name
from batchscope.analysis.flatness import analyse_sharpness
from batchscope.records import FlatnessRow, Measured, SharpnessResult
from batchscope.report import flatness_words as said
from batchscope.report.flatness_facts import facts_of, methods_of
from batchscope.report.flatness_figures import missing_among


def text_of(result: SharpnessResult) -> str:
    """All sentences."""
    return " ".join(said.sentences_of(result))


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_two_to_six_paragraphs_without_a_hole(make: Callable[[], SharpnessResult]) -> None:
    result = said.worded(make())
    assert 2 <= len(result.sentences) <= 6
    for sentence in result.sentences:
        assert sentence[0].isupper()
        assert sentence.endswith(".")
        assert not re.search(r"\b(nan|None|n/a|inf)\b|  |\.\.| [,.;]", sentence)
    assert dataclasses.replace(result, sentences=()) == dataclasses.replace(make(), sentences=())


def test_claim_10_is_told_by_policy_with_its_measures_and_ratios() -> None:
    first, second, *_ = said.sentences_of(whole())
    claims = [c for c in whole().claims if (c.number, c.policy) == (10, "held")]
    assert {c.verdict for c in claims} == {"holds"}
    assert first.startswith("At the held learning rate, batch size 64 ends in sharper minima than 8 by all 8 measures")
    ratio = claims[0].effect.ratio
    named = "sharpness (box, full space, eps 0.001) "
    assert f"sharper by {named}{ratio.estimate:.2f} times (Holm-corrected interval {ratio.low:.2f} to" in first
    assert second.startswith("With the learning rate tuned, batch size 64 ")


def test_measures_that_disagree_are_said_to() -> None:
    result = whole()
    claims = tuple(
        dataclasses.replace(c, verdict="does not hold") if k == 0 else c for k, c in enumerate(result.claims)
    )
    assert "The measures disagree with each other" in text_of(dataclasses.replace(result, claims=claims))
    every = tuple(dataclasses.replace(c, verdict="holds") for c in result.claims)
    agreed = text_of(dataclasses.replace(result, claims=every))
    assert "by all 8 measures" in agreed
    assert "disagree" not in agreed
    none = tuple(dataclasses.replace(c, verdict="not resolved") for c in result.claims)
    assert "is not shown to end in sharper minima than 8 by any of 8 measures" in text_of(
        dataclasses.replace(result, claims=none)
    )


def test_what_else_could_make_the_difference() -> None:
    text = text_of(whole())
    assert "With the learning rate tuned the rate is not the same, 0.0167 at batch size 8 and 0.0615 at 64" in text
    assert "measures its learning rate; compare the held policy, where it is the same." in text
    assert "gradient descent without momentum" in text
    assert "the curvature of cross-entropy falls as it saturates" in text
    assert "adaptive sharpness and the adaptive eigenvalue do not: of their 4 judgements" in text
    assert "the rate is not the same" not in text_of(held())
    assert "the adaptive measures, which do not, were not taken" in text_of(bare())


def test_distances_are_told_at_equal_terms() -> None:
    text = text_of(whole())
    assert "at the measured weights" in text
    for equal in ("epochs", "steps", "training loss"):
        assert f"at equal {equal}" in text
    assert "“nearer to the start” holds at" in text
    assert "no trace of the study was at hand" in text_of(held())


def test_growth_tells_how_much_both_lines_explain() -> None:
    growth = tuple(dataclasses.replace(g, explained=0.5, explained_by_power=0.9) for g in whole().growth)
    text = text_of(dataclasses.replace(whole(), growth=growth))
    assert "a line in the logarithm of the steps explains 50 % of the distance's variance" in text
    assert "a power law of the steps 90 % of it" in text
    assert f"the line explains more in 0 of {len(growth)} rows" in text


def test_causal_runs_are_told_with_their_intervals_and_sides() -> None:
    text = said.sentences_of(whole())[-1]
    row = next(r for r in whole().causes if (r.batch_size, r.share) == (64, 0.25))
    box, largest, lowest = row.ratios.values()
    assert text.startswith(
        "Switched from batch size 8 to 64 after 25 % of the way to the lowest validation loss of 8, training ended "
        f"with its box sharpness lower, {box.estimate:.2f} times (95 % interval {box.low:.2f} to {box.high:.2f}), "
        f"largest eigenvalue lower, {largest.estimate:.2f} times ({largest.low:.2f} to {largest.high:.2f}) and lowest "
        f"validation loss lower, {lowest.estimate:.2f} times ({lowest.low:.2f} to {lowest.high:.2f}), against 64 "
        "uninterrupted; switched after 50 and 100 % of that way, box sharpness, largest eigenvalue and lowest "
        "validation loss lower. Switched after 100 % it was measured within 1 epoch of the switch, on average: next to "
        "batch size 8's own weights, which shows nothing of 64. Switched from batch size 64 to 8 after 25 %"
    )
    assert "Batch size 64 with the gradient noise of 8 injected ended with its box sharpness lower, 0.7" in text
    assert "and lowest validation loss within 5 %, 1.00 times" in text
    assert "not corrected for their number" in text
    assert "Switched" not in text_of(held())


def test_causal_runs_with_nothing_to_compare_say_so() -> None:
    data = whole().data
    runs = tuple(dataclasses.replace(r, reached_loss=math.inf) for r in data.continued)
    lost = analyse_sharpness(dataclasses.replace(data, continued=runs), None)
    assert "against 64 uninterrupted; lowest validation losses cannot be compared" in text_of(lost)
    tuned = tuple(p for p in data.points if p.policy == "tuned")
    alone = text_of(analyse_sharpness(dataclasses.replace(data, points=tuned), None))
    assert "; no uninterrupted run of 64 with the same seed is known to compare it with." in alone
    one = analyse_sharpness(dataclasses.replace(data, continued=tuple(r for r in runs if r.seed == 0)), None)
    ratio = next(r for r in one.causes if (r.batch_size, r.share) == (64, 0.25)).ratios["largest eigenvalue"]
    assert f"largest eigenvalue not resolved, {ratio.estimate:.2f} times (without an interval)" in text_of(one)


def test_what_is_not_repeatable_is_a_fact_and_one_note() -> None:
    data = worlds.made_up_sharpness((8, 64), ("held",), drawn=False)
    said_of = ("f is not repeatable: 0.conv (Conv2d) differs between equal passes",)
    points = tuple(dataclasses.replace(p, notes=said_of) for p in data.points)
    result = analyse_sharpness(dataclasses.replace(data, points=points), None)
    assert dict(facts_of(result))["Reproducible"] == said_of[0]
    assert result.notes == said_of
    one = analyse_sharpness(dataclasses.replace(data, points=(points[0], *data.points[1:])), None)
    assert one.notes == (f"batch size 8, held, seed 0: {said_of[0]}",)
    assert dict(facts_of(whole()))["Reproducible"] == "equal passes over the first chunks gave the same bits"


def test_files_and_single_seeds_say_what_is_not_known() -> None:
    assert text_of(files()).startswith("Weights were measured as they came, small.pt and large.pt: sharpness")
    assert "no claim is judged" in text_of(files())
    assert "is not shown to end in sharper minima" in text_of(one_seed())
    alone = analyse_sharpness(worlds.made_up_sharpness((8,), drawn=False), None)
    assert "At the held learning rate only batch size 8 was measured" in text_of(alone)


def test_facts_and_methods() -> None:
    facts = dict(facts_of(whole()))
    assert facts["Weights"] == (
        "24 sets of 2,410 trainable parameters, of study abc123's trials, as they were at the lowest validation loss"
    )
    assert "over 1,024 examples" in facts["Function"]
    assert "chunks of 256" in facts["Function"]
    assert facts["Estimators"] == "probes 5.00; radius 0.500; draws 64.0; seed 0"
    assert "no batch norm" in facts["Mode"]
    assert "(bn1 and bn2)" in dict(facts_of(files()))["Mode"]
    assert dict(facts_of(files()))["Weights"].endswith("from files")
    used = [name for names in methods_of(whole()).values() for name in names]
    assert {"claims", "trace", "largest eigenvalue", "growth of the distance"} <= set(used)


def test_what_is_not_drawn_says_why() -> None:
    assert missing_among(drawn(whole)) == []
    missing = missing_among(drawn(held))
    assert all(m.endswith(".") and m[0].isupper() for m in (*missing, *missing_among(drawn(files))))
    assert "Between a small-batch and a large-batch minimum: no pictures were asked for." in missing
    assert "Training that went on otherwise: no causal runs were asked for." in missing
    assert any(m.startswith("Distance from the initial weights along training: the traces") for m in missing)


def test_a_run_far_below_the_edge_is_not_called_a_meter_of_its_rate() -> None:
    """One whose largest eigenvalue is near 2 / learning rate is."""
    result = whole()

    def scaled(by: float) -> str:
        def row(r: FlatnessRow) -> FlatnessRow:
            m = Measured(by, 0.9 * by, 1.1 * by, 3)
            return dataclasses.replace(r, measures={**r.measures, name.LARGEST_RATE: m})

        return said.rate_words(dataclasses.replace(result, rows=tuple(map(row, result.rows))))

    assert "it is no meter of the rate" in scaled(0.01)
    assert "measures its learning rate" in scaled(1.9)
