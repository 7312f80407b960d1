"""Do the advice's sentences and its snippet say what the record holds, with intervals, in every case?"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from made_up_advice import OWN, OWN_RATE, SIZES, advice
from made_up_answers import (
    ALL,
    best_in,
    energetic,
    fewest_examples,
    from_noise,
    hostile,
    lawless,
    memory_binds,
    not_answered,
    nothing_ran,
    one_size,
    priced,
    uneven,
    unverified,
    verified_but_better,
)

from batchscope.records import Advice, Candidate, Measured
from batchscope.report.advice_numbers import chance, decimals, lasting, spelled, times
from batchscope.report.advice_words import sentences_of, snippet_of, worded
from batchscope.report.words import count, number


def chosen_of(made: Advice) -> Candidate:
    """The recommended candidate."""
    assert made.chosen is not None
    return made.chosen


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_every_advice_is_a_few_whole_sentences(make: Callable[[], Advice]) -> None:
    made = worded(make())
    assert 2 <= len(made.sentences) <= 4
    for said in made.sentences:
        assert re.match(r"[A-Z]", said)
        assert said.endswith(".")
        assert not re.search(r"None|nan|  |\.\.| ,", said)
    assert bool(made.snippet) == made.answered
    assert worded(made) == made


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_no_ratio_and_no_duration_without_its_interval(make: Callable[[], Advice]) -> None:
    text = " ".join(sentences_of(make()))
    bare = re.sub(r"\([^)]*\d to \d[^)]*\)", "()", text)  # brackets that hold an interval
    for found in re.finditer(r"[\d.]+ times\b[^(;,.]*(.?)", bare):
        assert found[1] == "(", found[0]
    assert not re.search(r"\bin [\d.]+ (ms|s|min|h|days)(?! \()(?! the validation)", bare)


def test_the_decision_comes_first_beside_todays_point() -> None:
    where = "batch size 128 and learning rate 0.141, in one pass on 1 device"
    assert sentences_of(advice())[0] == f"Train with {where}; today the task trains at 64 and 0.1."


def test_the_users_own_point_is_named_as_such() -> None:
    own = dataclasses.replace(advice().candidates[SIZES.index(OWN)], learning_rate=OWN_RATE)
    said = sentences_of(advice(chosen=None) if own is None else dataclasses.replace(advice(), chosen=own))
    assert said[0].startswith("Stay at batch size 64 and learning rate 0.1, in one pass on 1 device")
    assert "own point" not in said[1]


def test_what_it_costs_and_how_sure() -> None:
    made = advice()
    chosen, said = chosen_of(made), sentences_of(made)[1]
    assert lasting(chosen.seconds_to_goal, "90 % interval ") in said
    assert "validation loss at most 0.36" in said
    assert chosen.over_own is not None
    assert times(chosen.over_own, "as long as the task's own point") in said
    assert "a run with a seed that had no part in the choice got there" in said
    assert f"the fastest of the 9 batch sizes compared is {chance(chosen.p_best)}; 64 and 256 may be as good" in said


def test_an_own_point_that_did_not_get_there_bounds_the_ratio() -> None:
    made = advice()
    bound = Measured(None, None, 0.42, 3, 1, "90 % posterior; the own point did not reach the goal")
    made = dataclasses.replace(made, chosen=dataclasses.replace(chosen_of(made), over_own=bound))
    assert "at most 0.42 times as long as the task's own point, if that gets there" in sentences_of(made)[1]


def test_doubling_and_halving_are_ratios_of_paired_draws() -> None:
    made = advice()
    said = sentences_of(made)[2]
    for size in (256, 64):
        ratio = naive_ratio(made, size, 128)
        assert re.search(rf"to {size}\b.* {ratio[1]:.2f} times[^(]*\([^)]*{ratio[0]:.2f} to {ratio[2]:.2f}\)", said)


def naive_ratio(made: Advice, size: int, other: int, objective: str = "time") -> list[float]:
    """Draw by draw: the objective at one size over that at another, sorted, its 5 %, 50 % and 95 % by interpolation."""
    assert made.curves is not None
    ratios = []
    for row, steps in zip(made.curves.draws_log_examples, made.curves.draws_log_seconds, strict=True):
        value = []
        for b in (size, other):
            k = SIZES.index(b)
            per_epoch = -(-made.data.train_size // b)
            examples = 2.718281828459045 ** row[k]
            time = examples / (made.data.train_size / per_epoch) * 2.718281828459045 ** steps[k]
            value.append(examples if objective == "examples" else time)
        ratios.append(value[0] / value[1])
    ratios.sort()

    def at(q: float) -> float:
        place = q * (len(ratios) - 1)
        k = int(place)
        return ratios[k] + (place - k) * (ratios[min(k + 1, len(ratios) - 1)] - ratios[k])

    return [at(q) for q in (0.05, 0.5, 0.95)]


def test_only_one_neighbour_at_the_end_of_the_sizes() -> None:
    said = sentences_of(fewest_examples())[2]
    low, middle, high = naive_ratio(fewest_examples(), 32, 16, "examples")
    assert said == (
        f"Doubling the batch size to 32 would need {middle:.2f} times as many examples (90 % interval {low:.2f} to "
        f"{high:.2f}), at the learning rate that suits it."
    )


def test_what_binds_and_what_more_budget_buys() -> None:
    made = advice()
    said = sentences_of(made)[3]
    assert "What binds is gradient noise: above the critical batch size of 180" in said
    assert "More than 1 device was not measured" in said
    assert (
        f"after {number(made.spent.reference_runs, 2)} of 15 reference runs no further run was worth its price" in said
    )
    nothing = dataclasses.replace(made, data=dataclasses.replace(made.data, ended="nothing left"))
    assert "no run left to make" in sentences_of(nothing)[3]
    budget = dataclasses.replace(made, data=dataclasses.replace(made.data, ended="budget"))
    assert "more would narrow the intervals" in sentences_of(budget)[3]
    assert "No limit that was measured binds." in sentences_of(advice(binding_limit="none", binding_why=""))[3]


def test_a_better_one_that_was_not_run_is_given_with_its_price() -> None:
    for make, seen in ((unverified, "no run with a fresh seed has verified it"), (verified_but_better, "got there")):
        made = make()
        said = sentences_of(made)
        low, middle, high = naive_ratio(made, 128, 256)
        assert seen in said[1]
        assert (
            f"Batch size 128 at learning rate 0.141 is predicted to take {middle:.2f} times as long (90 % interval "
            f"{low:.2f} to {high:.2f}), but that is extrapolated: running it once would take 2.6 reference runs more."
        ) in said[3]
        assert "a budget of" in said[3]


def test_one_that_was_run_but_not_verified_is_not_called_extrapolated() -> None:
    made = unverified()
    assert made.better is not None
    run = dataclasses.replace(made.better, candidate=dataclasses.replace(made.better.candidate, extrapolated=False))
    said = sentences_of(dataclasses.replace(made, better=run))[3]
    assert "but that is not verified: a run with a fresh seed would take 2.6 reference runs more" in said
    assert "would verify batch size 128" in said


def test_a_recommendation_that_is_unlikely_to_be_the_best_is_said_to_be() -> None:
    said = sentences_of(dataclasses.replace(unverified(), good_batch_sizes=(64, 128)))[1]
    assert said.endswith("is 28 %: it is unlikely to be; within 5 % of the best may be 64 and 128.")


def test_no_answer_says_so_and_what_to_try() -> None:
    said = sentences_of(not_answered())
    most = max(t.examples for t in not_answered().data.trials)
    assert said[0] == f"No batch size reached validation loss at most 0.36 in 7 runs of up to {count(most)} examples."
    assert said[1] == "The lowest validation loss was 0.372, at batch size 64 and learning rate 0.1; 1 run diverged."
    assert said[2].startswith("Try a goal that is known to be reached (the task's own point reached validation loss")
    assert "`budget` in the task (now 20,000,000 examples for a run)" in said[2]
    assert sentences_of(nothing_ran())[0] == "No run was made, so nothing is known."


@pytest.mark.parametrize(("examples", "within"), [(False, "In 30 s"), (True, "In 1,000,000 examples")])
def test_the_lowest_loss_in_a_given_time(examples: bool, within: str) -> None:
    said = sentences_of(best_in(examples))
    assert said[1].startswith(f"{within} the validation loss falls to 0.330 (90 % interval 0.322 to 0.338)")
    assert "the one that ends lowest of the 9 batch sizes" in said[1]
    assert "Doubling the batch size to 256 would end at 1.03 times as high a loss" in said[2]
    assert "goal" not in " ".join(said)


@pytest.mark.parametrize("branches", [False, True])
def test_without_runs_to_the_goal_only_ratios_are_given(branches: bool) -> None:
    made = from_noise(branches)
    said = sentences_of(made)
    assert f"the evidence is {made.evidence}, which is weaker than runs to the goal and gives ratios only" in said[1]
    assert "no run was made there, so this is extrapolated" in said[1]
    assert not re.search(r"\d (ms|s|min|h)\b", " ".join(said))
    assert "would run it to the goal" in said[3]


def test_cost_energy_and_examples_name_their_own_unit() -> None:
    cost, energy, examples = (sentences_of(m()) for m in (priced, energetic, fewest_examples))
    chosen = chosen_of(priced())
    assert f"for {spelled(chosen.cost)} at 2.4 for a device for an hour" in cost[1]
    assert "the cheapest" in cost[1]
    assert "would cost" in cost[2]
    joules = chosen_of(energetic()).joules
    assert joules is not None
    assert f"with {spelled(joules, unit='J')}" in energy[1]
    assert "times as much energy" in energy[2]
    assert f"with {spelled(chosen_of(fewest_examples()).examples_to_goal, unit='examples')}" in examples[1]
    assert "device hours" in sentences_of(advice(objective="cost"))[1]


def test_a_law_that_does_not_hold_is_said_where_runs_say_so() -> None:
    assert "typically 31 % off the law" in sentences_of(lawless())[3]
    assert "off the law" not in " ".join(sentences_of(dataclasses.replace(from_noise(), law_holds=False)))


def test_one_size_has_nothing_to_compare() -> None:
    said = sentences_of(one_size())
    assert "No other batch size was compared." in said[1]
    assert "Doubling" not in " ".join(said)


def test_control_characters_cannot_reach_a_sentence() -> None:
    made = dataclasses.replace(hostile(), binding_why="a\x1b[31m line\nbreak")
    assert "\x1b" not in " ".join(sentences_of(made))
    assert "\n" not in " ".join(sentences_of(made))


# --- numbers ---


@pytest.mark.parametrize(
    ("m", "text"),
    [
        (Measured(0.0123, 0.0100, 0.0150, 9), "12 ms (10 to 15 ms)"),
        (Measured(25.0, 18.7, 39.1, 9), "25 s (19 to 39 s)"),
        (Measured(25.04, 24.9, 25.2, 9), "25.0 s (24.9 to 25.2 s)"),  # narrow: three digits
        (Measured(200.0, 100.0, 400.0, 9), "3.3 min (1.7 to 6.7 min)"),
        (Measured(12_500.0, 9_000.0, 19_000.0, 9), "3.5 h (2.5 to 5.3 h)"),
        (Measured(900_000.0, 800_000.0, 1e6, 9), "10 days (9.3 to 12 days)"),
        (Measured(25.0, None, None, 1), "25.0 s (without an interval)"),
        (Measured(25.0, 20.0, None, 1), "25.0 s (above 20.0 s)"),
        (Measured(None, 40.0, None, 0), "at least 40.0 s"),
        (Measured(25.0, 1e-9, 1e12, 9), "25 s (90 % interval wider than a factor of 1,000)"),
    ],
)
def test_durations_are_human(m: Measured, text: str) -> None:
    assert lasting(m) == text


@pytest.mark.parametrize(("value", "text"), [(1.064, "1.06"), (0.938, "0.94"), (12.3, "12"), (0.042, "0.042")])
def test_ratios_have_two_decimals(value: float, text: str) -> None:
    assert decimals(value) == text


@pytest.mark.parametrize(("p", "text"), [(0.673, "67 %"), (1.0, "more than 99 %"), (0.0, "less than 1 %")])
def test_chances_are_never_certain(p: float, text: str) -> None:
    assert chance(p) == text


# --- the snippet ---


def test_the_snippet_has_no_loop_where_nothing_is_accumulated() -> None:
    made = advice()
    assert snippet_of(made).splitlines() == [
        "loader = DataLoader(train, batch_size=128, shuffle=True)",
        f"optimizer = make_optimizer(model, lr={chosen_of(made).learning_rate:.6g})  # your own, at this learning rate",
    ]
    assert snippet_of(not_answered()) == ""


@pytest.mark.parametrize(("make", "examples"), [(memory_binds, 128), (uneven, 300), (memory_binds, 200)])
def test_the_snippet_steps_as_whole_batches_do(make: Callable[[], Advice], examples: int) -> None:
    """Run as it stands, over batches that the micro-batch does not divide and an epoch that the batch does not."""
    x, y = torch.randn(examples, 3, generator=torch.manual_seed(0)), torch.randn(examples, 1)
    models = [torch.nn.Linear(3, 1) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    chosen = chosen_of(make())
    text = snippet_of(make()).replace("shuffle=True", "shuffle=False")
    names: dict[str, Any] = {
        "DataLoader": torch.utils.data.DataLoader,
        "train": torch.utils.data.TensorDataset(x, y),
        "model": models[0],
        "loss": torch.nn.functional.mse_loss,
        "make_optimizer": lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr),
    }
    exec(text, names)  # the lines are what a user pastes
    plain = torch.optim.SGD(models[1].parameters(), lr=float(f"{chosen.learning_rate:.6g}"))
    for xs, ys in zip(x.split(chosen.batch_size), y.split(chosen.batch_size), strict=True):
        plain.zero_grad()
        torch.nn.functional.mse_loss(models[1](xs), ys).backward()
        plain.step()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_several_devices_share_the_batch() -> None:
    made = advice()
    four = dataclasses.replace(chosen_of(made), devices=4, micro_batch_size=16, accumulation=2)
    text = snippet_of(dataclasses.replace(made, chosen=four))
    assert "in each of 4 processes" in text
    assert "batch_size=32, sampler=DistributedSampler(train)" in text
    assert "x.split(16)" in text
    said = sentences_of(dataclasses.replace(made, chosen=four))[0]
    assert "accumulated over 2 micro-batches of 16 each on 4 devices" in said
    alone = dataclasses.replace(four, micro_batch_size=32, accumulation=1)
    assert "32 examples each on 4 devices" in sentences_of(dataclasses.replace(made, chosen=alone))[0]
