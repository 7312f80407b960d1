"""What is the advice, in words? Four short paragraphs that a person would write, and the lines to train with.

What to use; what it costs and how sure that is; what doubling or halving the batch size would cost; what binds,
what was not measured and what more budget would buy. Every interval is a central 90 % one, and is said to be.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from batchscope.records import Advice, Candidate, Tried
from batchscope.report.advice_numbers import (
    NAMED,
    aim_of,
    allowance,
    by_loss,
    chance,
    decimals,
    goal_in,
    lasting,
    rate,
    spelled,
    times,
)
from batchscope.report.advice_ratios import by_size, over
from batchscope.report.noise_words import known
from batchscope.report.words import count, goal_of, list_of, number, plain, sentence

TO_GOAL = "trials to goal"  # the evidence that gives more than ratios
LIMIT_NAMES = {
    "memory": "memory",
    "knee": "the throughput knee",
    "noise": "gradient noise",
    "data set": "the size of the data set",
    "devices": "the number of devices",
    "smallest size": "the smallest batch size considered",
}
ACCUMULATED = """for x, y in loader:
    for xs, ys in zip(x.split({micro}), y.split({micro})):  # {parts} micro-batches, the last may be shorter
        (loss(model(xs), ys) * (len(xs) / len(x))).backward()  # adds up to the mean over the whole batch
    optimizer.step()
    optimizer.zero_grad()"""


def worded(advice: Advice) -> Advice:
    """The advice with its `sentences` and its `snippet`."""
    return dataclasses.replace(advice, sentences=tuple(sentences_of(advice)), snippet=snippet_of(advice))


def sentences_of(advice: Advice) -> list[str]:
    """The advice, a paragraph each."""
    chosen = advice.chosen
    if chosen is None:
        return unanswered_sentences(advice)
    parts = (use_sentence, sure_sentences, neighbour_sentence, limit_sentences)
    return [said for part in parts if (said := part(advice, chosen))]


# --- the recommendation ---


def use_sentence(advice: Advice, chosen: Candidate) -> str:
    """What to use, beside the point where the user trains today."""
    data, how = advice.data, split_words(chosen)
    where = f"batch size {count(chosen.batch_size)} and learning rate {rate(chosen.learning_rate)}"
    if is_own(advice, chosen):
        return f"Stay at {where}, {how}: it is where the task trains today."
    today = f"today the task trains at {count(data.own_batch_size)} and {rate(data.own_learning_rate)}"
    return f"Train with {where}, {how}; {today}."


def is_own(advice: Advice, candidate: Candidate) -> bool:
    """Whether the user trains there already."""
    own = (advice.data.own_batch_size, advice.data.own_learning_rate)
    return (candidate.batch_size, candidate.learning_rate) == own


def split_words(candidate: Candidate) -> str:
    """`in one pass on 1 device`, `accumulated over 2 micro-batches of 64 on 1 device`."""
    n, micro, parts = candidate.devices, candidate.micro_batch_size, candidate.accumulation
    devices = f"on {count(n)} device{'' if n == 1 else 's'}"
    if parts == 1:
        return f"in one pass {devices}" if n == 1 else f"{count(micro)} examples each {devices}"
    most = "" if micro * parts * n == candidate.batch_size else "at most "
    return f"accumulated over {count(parts)} micro-batches of {most}{count(micro)} {'' if n == 1 else 'each '}{devices}"


def sure_sentences(advice: Advice, chosen: Candidate) -> str:
    """What it costs, whether that was seen, how surely it is the best, and what else is as good."""
    return f"{cost_sentence(advice, chosen)} {best_sentence(advice, chosen)}"


def cost_sentence(advice: Advice, chosen: Candidate) -> str:
    """Time, price, examples or joules to the goal, or the loss; or that only ratios are known."""
    if by_loss(advice):
        loss = chosen.lowest_loss
        if loss is None or not known(loss):
            return f"How low the validation loss gets in {allowance(advice)} is not known."
        return f"In {allowance(advice)} the validation loss falls to {spelled(loss, named=NAMED)}; {seen(advice)}."
    against = own_words(advice, chosen, "" if known(chosen.seconds_to_goal) else NAMED)
    if not known(chosen.seconds_to_goal):
        why = f"the evidence is {plain(advice.evidence)}, which is weaker than runs to the goal and gives ratios only"
        said = f"How long it takes to reach {goal_in(advice)} is not known: {why}"
        return f"{said}. It should take {against}; {seen(advice)}." if against else f"{said}; {seen(advice)}."
    spent = [lasting(chosen.seconds_to_goal, NAMED), *(extra_of(advice, chosen)), *([against] if against else [])]
    return f"It reaches {goal_in(advice)} in {', '.join(spent)}; {seen(advice)}."


def extra_of(advice: Advice, chosen: Candidate) -> list[str]:
    """What the objective counts beside seconds."""
    question, said = advice.question, []
    if question.price is not None and known(chosen.cost):
        said.append(f"for {spelled(chosen.cost)} at {question.price:g} for a device for an hour")
    elif question.objective == "cost" and known(chosen.cost):
        said.append(f"{spelled(chosen.cost, unit='device hours')}")
    if question.objective == "energy" and chosen.joules is not None and known(chosen.joules):
        said.append(f"with {spelled(chosen.joules, unit='J')}")
    if question.objective == "examples":
        said.append(f"with {spelled(chosen.examples_to_goal, unit='examples')}")
    return said


def own_words(advice: Advice, chosen: Candidate, named: str = "") -> str:
    """How it compares with where the user trains today; empty where it is the same point, or nothing is known."""
    m = chosen.over_own
    if m is None or is_own(advice, chosen) or (m.estimate is None and m.high is None):
        return ""
    if m.estimate is None:  # the own point did not get there
        return f"at most {decimals(m.high)} times {aim_of(advice).ratio} as the task's own point, if that gets there"
    return times(m, f"{aim_of(advice).ratio} as the task's own point", named)


def seen(advice: Advice) -> str:
    """Whether a run with a fresh seed was made there."""
    if advice.verified:
        return f"a run with a seed that had no part in the choice {'agrees' if by_loss(advice) else 'got there'}"
    if advice.chosen is not None and advice.chosen.extrapolated:
        return "no run was made there, so this is extrapolated"
    return "no run with a fresh seed has verified it"


def best_sentence(advice: Advice, chosen: Candidate) -> str:
    """P(best), and the batch sizes that cannot be told from the best."""
    n, aim = len(advice.candidates), aim_of(advice)
    if n < 2:
        return "No other batch size was compared."
    said = f"The probability that it is {aim.best} of the {n} batch sizes compared is {chance(chosen.p_best)}"
    others = [b for b in advice.good_batch_sizes if b != chosen.batch_size]
    if others and chosen.batch_size not in advice.good_batch_sizes:
        return f"{said}: it is unlikely to be; within 5 % of the best may be {list_of(map(count, others))}."
    if not others:
        return f"{said}, and no other is likely to come within 5 % of the best."
    return f"{said}; {list_of(map(count, others))} may be as good (within 5 %)."


def neighbour_sentence(advice: Advice, chosen: Candidate) -> str:
    """What doubling and halving the batch size would cost, at the learning rates that suit them."""
    sizes, told, aim = by_size(advice.candidates), [], aim_of(advice)
    for name, size in (("doubling", 2 * chosen.batch_size), ("halving", chosen.batch_size // 2)):
        other = sizes.get(size)
        ratio = over(advice, other, chosen) if other is not None and other is not chosen else None
        if ratio is None:
            continue
        if told:
            told.append(f"{name} it to {count(size)} {times(ratio, '')}")
        else:
            said = times(ratio, aim.ratio, NAMED)
            told.append(f"{name.capitalize()} the batch size to {count(size)} would {aim.verb} {said}")
    return f"{', '.join(told)}, {'each ' if len(told) > 1 else ''}at the learning rate that suits it." if told else ""


# --- limits ---


def limit_sentences(advice: Advice, chosen: Candidate) -> str:
    """What binds, what may be better, what was not measured, what would change the advice, what more budget buys."""
    said = (binding_sentence(advice), better_sentence(advice), law_sentence(advice), change_sentence(advice, chosen))
    return " ".join(s for s in (*said, budget_sentence(advice)) if s)


def binding_sentence(advice: Advice) -> str:
    """The limit that binds, and why."""
    name, why = LIMIT_NAMES.get(advice.binding_limit), plain(advice.binding_why).strip()
    if name is None:
        return sentence(why) if why else "No limit that was measured binds."
    return f"What binds is {name}: {why[0].lower()}{sentence(why)[1:]}" if why else f"What binds is {name}."


def better_sentence(advice: Advice) -> str:
    """The candidate that is predicted to be the best and was not run to the goal."""
    if advice.better is None:
        return ""
    other, aim, runs = advice.better.candidate, aim_of(advice), number(advice.better.reference_runs, 2)
    ratio = over(advice, other, advice.chosen) if advice.chosen is not None else None
    does = f"{aim.verb} {times(ratio, aim.ratio, NAMED)}" if ratio is not None else "be better"
    unsure = "extrapolated: running it once" if other.extrapolated else "not verified: a run with a fresh seed"
    return (
        f"Batch size {count(other.batch_size)} at learning rate {rate(other.learning_rate)} is predicted to {does}, "
        f"but that is {unsure} would take {runs} reference runs more."
    )


def law_sentence(advice: Advice) -> str:
    """That the law is off, where runs to the goal say so."""
    if advice.law_holds or advice.law_misfit is None or advice.evidence != TO_GOAL:
        return ""
    off = f"{100 * advice.law_misfit:.0f} %"
    return f"Measured points are typically {off} off the law S(B) = S_min (1 + B_crit / B), and are believed over it."


def change_sentence(advice: Advice, chosen: Candidate) -> str:
    """What was not measured and would change the advice."""
    n = advice.question.devices if advice.data.scaling is not None else chosen.devices
    other = "length of training" if by_loss(advice) else "goal"
    more = f"More than {count(n)} device{'' if n == 1 else 's'} {'was' if n == 1 else 'were'} not measured"
    return f"{more}; another device, memory limit or {other} may change this."


def budget_sentence(advice: Advice) -> str:
    """Why the search ended, and what more would buy."""
    spent = f"{number(advice.spent.reference_runs, 2)} of {advice.question.budget:g} reference runs"
    if advice.better is not None:
        needed = math.ceil(advice.spent.reference_runs + advice.better.reference_runs)
        size = count(advice.better.candidate.batch_size)
        verb = "try" if advice.better.candidate.extrapolated else "verify"
        return f"With {spent} spent, a budget of {needed} would {verb} batch size {size}."
    if advice.evidence not in (TO_GOAL, "trials of a given length"):
        return f"A larger budget ({spent} spent) would run it to the goal, and say how long that takes."
    if advice.data.ended == "firm":
        return f"More budget would buy little: after {spent} no further run was worth its price."
    if advice.data.ended == "nothing left":
        return f"More budget would buy nothing: after {spent} there was no run left to make."
    return f"The search ended with its budget ({spent} spent); more would narrow the intervals."


# --- no answer ---


def unanswered_sentences(advice: Advice) -> list[str]:
    """That no run reached the goal, what came closest, and what to try."""
    data, runs = advice.data, advice.data.trials
    most = max((t.examples for t in runs), default=0)
    made = f"{count(len(runs))} run{'' if len(runs) == 1 else 's'} of up to {count(most)} examples"
    said = [f"No batch size reached {goal_in(advice)} in {made}." if runs else "No run was made, so nothing is known."]
    if closest := closest_of(runs):
        lost = sum(t.outcome == "diverged" for t in runs)
        diverged = f"; {count(lost)} run{'' if lost == 1 else 's'} diverged" if lost else ""
        where = f"batch size {count(closest.batch_size)} and learning rate {rate(closest.learning_rate)}"
        said.append(f"The lowest validation loss was {number(closest.lowest_loss)}, at {where}{diverged}.")
    easier = f" (the task's own point reached {goal_of(data.provisional_goal)})" if data.provisional_goal else ""
    said.append(
        f"Try a goal that is known to be reached{easier}, a larger `budget` in the task (now "
        f"{count(data.budget_examples)} examples for a run), or more reference runs (`--budget`, now "
        f"{advice.question.budget:g})."
    )
    return said


def closest_of(runs: Sequence[Tried]) -> Tried | None:
    """The run with the lowest validation loss."""
    finite = [(t.lowest_loss, t) for t in runs if t.lowest_loss is not None]
    return min(finite, key=lambda pair: pair[0])[1] if finite else None


# --- the snippet ---


def snippet_of(advice: Advice) -> str:
    """PyTorch lines for the recommendation; the loop only where batches are accumulated. Empty without an answer.

    An accumulated batch is loaded whole and cut: so micro-batches need not divide it, and the short batch at the end of
    an epoch keeps its weight.
    """
    chosen = advice.chosen
    if chosen is None:
        return ""
    n = chosen.devices
    here = -(-chosen.batch_size // n)  # examples on each device
    lines = [f"loader = DataLoader(train, batch_size={here}, shuffle=True)"]
    if n > 1:
        lines = [
            f"# in each of {n} processes, the model in DistributedDataParallel",
            f"loader = DataLoader(train, batch_size={here}, sampler=DistributedSampler(train))",
        ]
    lines.append(f"optimizer = make_optimizer(model, lr={chosen.learning_rate:.6g})  # your own, at this learning rate")
    if chosen.accumulation > 1:
        lines.append(ACCUMULATED.format(micro=chosen.micro_batch_size, parts=chosen.accumulation))
    return "\n".join(lines)
