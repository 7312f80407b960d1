"""How was it measured what more devices buy, in words? Devices, link, rounds, cost and methods, for both reports."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from batchscope.records import Measured, Network, ScalingData, ScalingResult
from batchscope.report.noise_facts import methods_among
from batchscope.report.noise_words import known
from batchscope.report.profile_facts import conditions_of, engine_of, versions_of
from batchscope.report.profile_words import size_of
from batchscope.report.words import count, list_of, loop_of, number, plain, seconds, sentence


def facts_of(result: ScalingResult) -> list[tuple[str, str]]:
    """Every fact with its name, in reading order."""
    data, c = result.data, result.data.conditions
    facts = [
        ("Devices", counts_of(data)),
        ("Gradient", gradient_of(data)),
        ("Timing", timing_of(data)),
        ("Link", link_words(result)),
        ("Model", model_of(result)),
        ("Steps to the goal", study_of(result)),
        ("Conditions", conditions_of(dataclasses.replace(c, world_size=1))),
        ("Engine", engine_of(c.engine)),
        ("Versions", versions_of(c)),
        ("Spent", f"{count(data.examples)} examples, {count(data.steps)} steps, {seconds(data.seconds)} in all"),
    ]
    return [*facts, *([("Measured at", f"{plain(data.measured_at[:19])} (UTC)")] if data.measured_at else [])]


def counts_of(data: ScalingData) -> str:
    """What was asked and what was timed."""
    timed = [p.conditions.world_size for p in data.timing.passes]
    sizes = list_of(map(count, data.question.batch_sizes))
    return (
        f"{list_of(map(count, timed))} timed, at global batch sizes {sizes}; predicted for up to "
        f"{count(data.question.largest)}"
    )


def gradient_of(data: ScalingData) -> str:
    """What is averaged every step, and in how many pieces."""
    pieces = len(data.timing.buckets)
    sizes = list_of(map(size_of, data.timing.buckets))
    parts = "in one piece" if pieces == 1 else f"in {count(pieces)} pieces of {sizes}"
    return f"{size_of(data.timing.gradient_bytes)} are averaged at every step, {parts}"


def timing_of(data: ScalingData) -> str:
    """How the seconds were taken."""
    passes = data.timing.passes
    rounds = sorted({len(t.seconds_per_step) for p in passes for t in p.timings})
    if not rounds:
        return "not measured"
    told = list_of(dict.fromkeys((rounds[0], rounds[-1])))
    size = count(passes[0].reference_batch_size)
    drift = number(100 * max(p.drift for p in passes))
    return (
        f"one interleaved pass of {loop_of(passes[0].loop)}, {told} rounds of every device count and batch size; a "
        f"window lasts as long as its slowest device; the reference step (batch size {size} on one device) drifted by "
        f"{drift} %"
    )


def link_words(result: ScalingResult) -> str:
    """The link that predictions are made for."""
    network, described = result.network, result.data.question.network
    sizes = sorted({size for _, size, _ in network.points})
    told = "no all-reduce was timed"
    if sizes:
        told = f"all-reduces of {size_of(sizes[0])} to {size_of(sizes[-1])} were timed by themselves"
    if network.reason:
        told = f"{told}; {sentence(network.reason).rstrip('.')}"
    return f"{told}; predictions are for the link described, {described_words(described)}" if described else told


def described_words(link: Network) -> str:
    """A link as its user describes it."""
    return f"latency {seconds(link.latency)}, bandwidth {number(link.bandwidth / 1e6)} MB/s"


def model_of(result: ScalingResult) -> str:
    """The fitted model, or why there is none."""
    if result.fit.reason:
        return sentence(result.fit.reason)
    return (
        "seconds per step of B examples on n devices = ((d + k c(B / n))^g + (f r(n))^g)^(1/g), with c(b) the "
        "seconds of a step of b examples on one device and r(n) those of the all-reduces timed by themselves"
    )


def study_of(result: ScalingResult) -> str:
    """Where steps to the goal come from."""
    if result.data.study_id is None:
        return "not known, no study of this task is in the store" if not result.choices else "as trained"
    return f"as study {plain(result.data.study_id)} trained them"


def notes_of(result: ScalingResult) -> list[str]:
    """The notes of the answer and of what was measured, each once."""
    return list(dict.fromkeys([*result.notes, *result.data.notes]))


def methods_of(result: ScalingResult) -> dict[str, list[str]]:
    """How each quantity's intervals were made: method -> the quantities that used it."""
    rows, choices, fit = result.rows, result.choices, result.fit
    several = [r for r in rows if r.devices > 1]
    crit = result.critical_batch_size
    quantities: dict[str, Iterable[Measured | None]] = {
        "seconds per step": [r.seconds_per_step for r in rows],
        "exposed averaging": [r.exposed for r in several],
        "strong speed-up": [r.strong_speedup for r in several],
        "weak efficiency": [r.weak_efficiency for r in several],
        "latency": [result.network.latency],
        "bandwidth": [result.network.bandwidth],
        "slowdown": fit.slowdown.values(),
        "wrapper": [fit.wrapper],
        "overlap": [fit.overlap],
        "predicted seconds per step": [p.seconds_per_step for p in result.predictions],
        "steps to goal": [c.steps_to_goal for c in choices],
        "seconds to goal": [c.seconds_to_goal for c in choices],
        "speed-up to the goal": [c.speedup for c in choices],
        "critical batch size": [crit],
    }
    return methods_among(
        {name: [m for m in values if m is not None and known(m)] for name, values in quantities.items()}
    )
