"""Does the answer of `match` say what was found, for every verdict, and what can be pasted run?"""

from __future__ import annotations

import ast
import dataclasses
import json
from collections.abc import Callable

import pytest
from made_up import HOSTILE
from made_up_match import (
    ALL,
    around,
    diverged,
    dropped,
    hopeless,
    hostile,
    matched,
    one_seed,
    plain_matches,
    row_of,
    unconfirmed,
    unmatched,
)

from batchscope.records import MatchResult, Measured
from batchscope.remedies.base import Case, Remedy, all_remedies, by_name
from batchscope.report import match_words as words
from batchscope.report.match_snippet import CONTROLLED, LONGER, configuration_of, settings_of
from batchscope.tasks.noisy_quadratic import task as quadratic


def test_the_answer_where_a_remedy_matches() -> None:
    assert words.answer_sentence(matched()) == (
        "At batch size 512 (16x), linear scaling matches batch size 32: lowest validation loss 0.1204 (95 % interval "
        "0.1196 to 0.1211) against 0.1200 (0.1199 to 0.1201), excess 0.30 % (-0.30 to 0.90 %); bound 0.76 %, below the "
        "1.0 % allowed; it takes 15 times fewer steps to the baseline's loss (14 to 16), and it is there 5.10 times as "
        "fast (4.70 to 5.50) on one device and 8.25 times as fast (7.55 to 8.95) on 4 devices."
    )


def test_the_answer_where_nothing_matches() -> None:
    assert words.answer_sentence(unmatched()) == (
        "No remedy was found to match batch size 32 at batch size 512: linear scaling at batch size 512 (16x) comes "
        "closest, excess 0.90 % (95 % interval 0.30 to 1.5 %); bound 1.4 %, not below the 1.0 % allowed, which narrows "
        "the gap; more seeds may settle it, about 14 instead of 5."
    )
    assert words.answer_sentence(hopeless()).endswith("allowed; more seeds would hardly change that.")
    assert words.answer_sentence(one_seed()) == (
        "No remedy was found to match batch size 32 at batch size 512: of one seed there is no interval, so that "
        "nothing can match; the lowest excess is that of linear scaling at batch size 512 (16x), 0.20 % (without an "
        "interval); more seeds may settle it."
    )
    assert words.answer_sentence(unconfirmed()).endswith("at batch size 512: none was run with fresh seeds.")
    assert words.answer_sentence(diverged()).endswith("run with fresh seeds, some diverged or failed.")


def test_what_comes_closest_has_the_lowest_bound() -> None:
    rows = (row_of("LARS", 512, 0.011, 0.02), row_of("SAM", 512, 0.013, 0.003), row_of("LAMB", 512, 0.012, 0.02))
    best = words.closest(dataclasses.replace(unmatched(), rows=rows))
    assert best is not None
    assert best.remedy == "SAM"


def test_beside_the_answer() -> None:
    said = words.sentences_of(matched())
    assert said[1:] == [
        "With the baseline's learning rate and no remedy, the excess is 10 % (8.0 to 12 %) at batch size 128, 20 % (18 "
        "to 22 %) at batch size 512 and 40 % (38 to 42 %) at batch size 1,024.",
        "Of the remedies run with fresh seeds: at batch size 128, 3 match, 8 narrow the gap and 1 does neither (linear "
        "scaling, weight averaging and the learning rate re-tuned alone match); at batch size 512, 1 matches, 8 narrow "
        "the gap and 3 do neither (linear scaling matches); at batch size 1,024, 5 narrow the gap and 6 do neither.",
        "At batch size 1,024, the next larger one tried, no remedy was found to match in fewer steps.",
        "Not confirmed with fresh seeds, as others looked better in the race: 1 at batch size 1,024.",
        "Not raced, as they cannot be applied: Adam scaled.",
        "The races at 3 batch sizes used 32 % of the examples that it would have taken to run all 216 candidates to "
        "the end.",
    ]
    assert any("not finite at batch size 512 (5 of 5 seeds diverged)" in s for s in words.sentences_of(diverged()))
    assert any(s.endswith("a gap that a remedy could close was not seen.") for s in words.sentences_of(one_seed()))
    assert "No batch size beyond 512 was tried: a larger one may match too." in words.sentences_of(plain_matches())


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_every_row_says_why_and_every_sentence_ends(make: Callable[[], MatchResult]) -> None:
    result = words.worded(make())
    said = [*words.sentences_of(result), *(r.why for r in (result.baseline, *result.untuned, *result.rows))]
    for text in said:
        assert text.endswith((".", HOSTILE))
        assert not {"nan", "None", "inf", "n/a"} & set(text.split())
    assert result.answer == said[0]


def test_the_reason_of_each_verdict() -> None:
    by = {r.remedy: words.why_of(r, matched()) for r in matched().rows if r.batch_size == 512}
    assert by["linear scaling"] == "With 95 % confidence its excess is below 0.76 %; below 1.0 % counts as a match."
    assert by["SAM"] == (
        "It ends below the untuned large batch, but its excess may be as large as 5.7 %, where below 1.0 % counts as a "
        "match; more seeds would hardly change that."
    )
    assert by["LAMB"].startswith("It is not shown to end below the untuned large batch, and its excess may be as large")
    assert words.why_of(unmatched().rows[0], unmatched()).endswith("more seeds may settle it, about 14 instead of 5.")
    assert words.why_of(one_seed().rows[0], one_seed()).startswith("Of one seed there is no interval")
    assert words.why_of(diverged().rows[0], diverged()) == (
        "2 of 5 seeds diverged or failed: what may diverge does not match."
    )
    lost = dataclasses.replace(hopeless().rows[0], excess=Measured(None, None, None, 0))
    assert words.why_of(lost, hopeless()) == "No seed ended with a loss to compare."


def test_the_reason_of_a_remedy_that_was_dropped() -> None:
    result = unconfirmed()
    assert (
        words.why_of(result.rows[0], result) == "All its runs diverged or failed within 222,222 examples of the race."
    )
    early = dropped(row_of("linear scaling", 512, 0.1, 0.1))
    assert words.why_of(early, result) == (
        "It came through the race to 2,000,000 examples, lowest validation loss 0.1200 where the best had 0.1200, but "
        "only the best were confirmed with fresh seeds."
    )
    late = [r for r in matched().rounds if r.batch_size == 512][:2]
    left = dropped(row_of("SAM", 512, 0.1, 0.1))
    assert words.why_of(left, dataclasses.replace(matched(), rounds=tuple(late))) == (
        "Dropped from the race after 222,222 examples: lowest validation loss 0.5600 where the best had 0.2000."
    )
    worse = dropped(row_of("square-root scaling", 512, 0.1, 0.1))
    assert words.why_of(worse, dataclasses.replace(matched(), rounds=tuple(late))) == (
        "Dropped from the race after 666,666 examples: lowest validation loss 0.3300 where the best had 0.1500."
    )
    assert words.why_of(left, unmatched()) == "It was not confirmed with fresh seeds."


def test_reasons_that_are_there_stay() -> None:
    result = dataclasses.replace(matched(), baseline=dataclasses.replace(matched().baseline, why="because."))
    assert words.worded(result).baseline.why == "because."


@pytest.mark.parametrize(
    ("ratio", "steps", "speed"),
    [
        (
            around(14.8, 1.2),
            "it takes 15 times fewer steps to the baseline's loss (14 to 16)",
            "15 times as fast (14 to 16)",
        ),
        (
            Measured(0.5, 0.4, 0.8, 3),
            "it takes 2.00 times as many steps to the baseline's loss (1.25 to 2.50)",
            "2.00 times as slow",
        ),
        (
            Measured(1.1, 0.9, 1.3, 3),
            "it takes 1.10 times fewer steps to the baseline's loss",
            "not clearly faster or slower, 1.10",
        ),
        (Measured(0.9, 0.8, 1.1, 3), "it takes 1.11 times as many", "not clearly faster or slower, 1.11 times as slow"),
        (
            Measured(None, 3.0, None, 5, 2),
            "it takes at least 3.00 times fewer steps to the baseline's loss, as far as is known",
            "",
        ),
        (Measured(None, None, 2.0, 5, 2), "it takes at most 2.00 times fewer steps to the baseline's loss", ""),
        (Measured(None, 0.5, None, 5, 2), "how many steps it saves", ""),
        (Measured(None, None, None, 0), "how many steps it saves is not known", ""),
    ],
)
def test_ratios_say_which_way_they_go(ratio: Measured, steps: str, speed: str) -> None:
    assert words.fewer_words(ratio).startswith(steps)
    assert not speed or words.faster_words(ratio).startswith(speed)


@pytest.mark.parametrize(
    ("share", "text"), [(0.384, "38"), (0.0413, "4.1"), (0.00426, "0.43"), (-0.001, "-0.10"), (12.34, "1,234")]
)
def test_percent(share: float, text: str) -> None:
    assert words.percent(share) == text


# --- what can be pasted ---


@pytest.mark.parametrize("make", [matched, plain_matches])
def test_what_can_be_pasted_makes_the_task_that_was_confirmed(make: Callable[[], MatchResult]) -> None:
    result, small = make(), quadratic()
    names: dict[str, object] = {"task": lambda: small}
    exec(compile(configuration_of(result), "pasted", "exec"), names)  # the lines of the report, on a task of our own
    large = names["large"]
    largest = result.largest
    assert largest is not None
    case = Case(largest.batch_size, result.baseline.batch_size, result.baseline.learning_rate, small.train_size)
    made = dataclasses.replace(
        by_name(largest.remedy).apply(small, case), batch_size=largest.batch_size, lr=largest.learning_rate
    )
    shown = ("batch_size", "lr", "clip_norm", "precision", "budget")
    assert [getattr(large, name) for name in shown] == [getattr(made, name) for name in shown]
    assert (large.schedule is None) == (made.schedule is None)


def test_what_decides_during_a_run_or_trains_longer_is_said() -> None:
    result = matched()
    assert result.largest is not None
    named = dataclasses.replace(result.largest, remedy="growing batch + train longer (power=1.0)")
    lines = configuration_of(dataclasses.replace(result, largest=named)).splitlines()
    assert lines[-2].startswith("control = remedy.control(small, case)")
    assert lines[-1].startswith(f"examples = round(remedy.length(case) * {result.question.budget_examples:_})")
    assert 'remedy = by_name("growing batch + train longer (power=1.0)")' in lines


@pytest.mark.parametrize("remedy", all_remedies(), ids=lambda remedy: remedy.title)
def test_remedies_that_do_are_known_by_name(remedy: Remedy) -> None:
    assert (type(remedy).control is not Remedy.control) == remedy.name.startswith(CONTROLLED)
    assert (type(remedy).length is not Remedy.length) == remedy.name.startswith(LONGER)


def test_nothing_to_paste_where_nothing_matches() -> None:
    assert configuration_of(unmatched()) == ""
    assert settings_of(unmatched()) == []


def test_a_name_cannot_leave_its_text() -> None:
    result = hostile()
    assert result.largest is not None
    attack = 'a")\nimport os  # \N{SNOWMAN}\\'
    named = dataclasses.replace(result.largest, remedy=attack)
    rows = tuple(dataclasses.replace(r, remedy=attack, changes=attack) for r in result.rows)
    code = configuration_of(dataclasses.replace(result, largest=named, rows=rows))
    tree = ast.parse(code)
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.Import) and n.names[0].name == "os"]
    assert attack in {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
    assert json.dumps(attack) in code


def test_a_match_that_saves_no_steps_is_no_answer() -> None:
    """A batch that never grew matches the baseline, being the baseline."""
    result = matched()
    rows = tuple(
        dataclasses.replace(
            row,
            steps=row.examples // 33 if row.verdict == "matches" else row.steps,
            fewer_steps=Measured(1.01, 0.97, 1.05, 5, 0, "t"),
            saves_steps=False,
            why="",
        )
        for row in result.rows
    )
    told = words.worded(dataclasses.replace(result, rows=rows, largest=None, answer="", configuration=""))
    assert told.answer.startswith("No remedy was found to match batch size 32 in fewer steps at batch size 128")
    assert "but it is not shown to save steps: its batches had 33 examples in the mean" in told.answer
    matching = next(row for row in told.rows if row.verdict == "matches")
    assert matching.why.endswith("(1.01 times fewer steps to the baseline's loss (0.97 to 1.05)).")
