"""How was a profile measured, in words? Device, switches, rounds, fits and cost, for terminal and page alike."""

from __future__ import annotations

from batchscope.analysis.step_time import scaled
from batchscope.records import Conditions, Engine, MemoryProfile, ProfileResult
from batchscope.report.profile_words import answer_sentences, size_interval, size_of
from batchscope.report.words import count, list_of, loop_of, measured, number, plain, seconds, sentence

ENGINE = {
    "channels_last": "channels last",
    "compiled": "torch.compile",
    "graphed": "CUDA graphs replayed",
    "prefetched": "next batch prefetched",
}


def facts_of(result: ProfileResult, dash: str = "-") -> list[tuple[str, str]]:
    """Every fact with its name, in reading order."""
    data, memory, c = result.data, result.memory, result.conditions
    facts = [("Conditions", conditions_of(c)), ("Engine", engine_of(c.engine)), ("Versions", versions_of(c))]
    facts += [("Timing", timing_of(result, dash)), ("Step time", step_time_of(result, dash))]
    if memory is not None:
        facts += [
            ("Memory limit", f"{size_of(memory.limit_bytes)}: {plain(memory.limit_is)}"),
            ("Peak memory", plain(memory.measured_as)),
            ("Example", plain(memory.sample_is)),
            ("Memory fit", memory_fit_of(memory)),
        ]
        if memory.conditions != c:
            facts.append(
                ("Memory conditions", f"{conditions_of(memory.conditions)}; {engine_of(memory.conditions.engine)}")
            )
    else:
        facts.append(("Memory", "not measured"))
    facts += [("FLOPs", flops_of(result)), ("Energy", plain(result.energy_is)), ("Spent", spent_on(result))]
    return [*facts, *([("Measured at", f"{plain(data.measured_at)} (UTC)")] if data.measured_at else [])]


def notes_of(result: ProfileResult) -> list[str]:
    """The notes of the answer and of what was measured, each once, less what the answer's sentences say already."""
    said = answer_sentences(result)
    return [n for n in dict.fromkeys([*result.notes, *result.data.notes]) if sentence(n) not in said]


def spent_on(result: ProfileResult) -> str:
    """What the profile itself took, probes and warm-up included."""
    data = result.data
    return (
        f"{count(data.examples)} examples, {count(data.steps)} steps, {seconds(data.seconds)} in all, probes included"
    )


def device_of(c: Conditions) -> str:
    """The device by name, with the precision."""
    return f"{plain(c.device_name or c.device)}, {plain(c.precision)}"


def conditions_of(c: Conditions) -> str:
    """Device, precision, threads and the rest of where something was measured."""
    device = f"{plain(c.device)} ({plain(c.device_name)})" if c.device_name else plain(c.device)
    threads = f"{c.threads} thread{'' if c.threads == 1 else 's'}"
    exact = "deterministic" if c.deterministic else "not deterministic"
    parts = [
        device,
        plain(c.precision),
        threads,
        f"world size {c.world_size}",
        exact,
        f"allocator {plain(c.allocator)}",
    ]
    return ", ".join([*parts, *([plain(c.platform)] if c.platform else [])])


def engine_of(engine: Engine) -> str:
    """Which switches of the engine were on."""
    on = [words for field, words in ENGINE.items() if getattr(engine, field)]
    return list_of(on) if on else "no switch on: eager, as PyTorch runs the model by itself"


def versions_of(c: Conditions) -> str:
    """The versions of what ran."""
    return ", ".join(f"{plain(k)} {plain(v)}" for k, v in c.versions.items()) or "not recorded"


def timing_of(result: ProfileResult, dash: str = "-") -> str:
    """How the seconds were taken."""
    timing = result.data.timing
    if timing is None or not timing.timings:
        return "not measured"
    rounds = dash.join(str(n) for n in sorted({len(t.seconds_per_step) for t in timing.timings}))
    return (
        f"measured alone in one interleaved pass of {loop_of(timing.loop)}, {rounds} rounds "
        f"per size; the reference step (batch size {count(timing.reference_batch_size)}) drifted by "
        f"{number(100 * timing.drift)} %"
    )


def step_time_of(result: ProfileResult, dash: str = "-") -> str:
    """The fitted step time, or why there is none."""
    fit = result.step_time
    if fit is None or fit.seconds_per_example.estimate is None:
        return sentence(fit.reason) if fit is not None and fit.reason else "No step time was fitted."
    a, b, s = fit.overhead_seconds, fit.seconds_per_example, fit.saturation_batch_size
    worst = max((abs(r) for r in fit.residuals), default=0.0)
    saturation = f"s = {size_interval(s, dash)}" if s.estimate is not None else "s not resolved"
    said = (
        f"t(b) = a + c (b⁴ + s⁴)^¼ with a = {measured(scaled(a, 1e3), 'ms', dash)}, "
        f"c = {measured(scaled(b, 1e6), 'µs per example', dash)}, {saturation} examples; largest residual "
        f"{number(100 * worst)} %."
    )
    return f"{said} {sentence(fit.reason)}" if fit.reason else said


def memory_fit_of(memory: MemoryProfile | None) -> str:
    """The fitted peak, or that there is none."""
    if memory is None or memory.fit is None:
        return "Not fitted."
    fit, sizes = memory.fit, memory.fit.micro_batch_sizes
    exact = "two sizes leave no residual"
    residual = f"largest residual {number(100 * fit.largest_residual)} %" if len(sizes) > 2 else exact
    return (
        f"peak(b) = {size_of(fit.fixed_bytes.estimate)} + {size_of(fit.bytes_per_example.estimate)} · b, over "
        f"{len(sizes)} probes from {count(min(sizes, default=0))} to {count(max(sizes, default=0))}; {residual}."
    )


def flops_of(result: ProfileResult) -> str:
    """What was counted, and why there is no utilisation where there is none."""
    flops = result.flops
    if flops is None:
        return "not counted"
    counted = f"{number(flops.per_example)} per example, counted at batch size {count(flops.batch_size)}"
    if flops.peak_per_second is None:
        return f"{counted}; utilisation not measured: the device's peak is not known"
    source = f" ({plain(flops.peak_source)})" if flops.peak_source else ""
    return f"{counted}; the device's peak is {number(flops.peak_per_second / 1e12)} TFLOP/s{source}"


def methods_of(result: ProfileResult) -> dict[str, list[str]]:
    """How each quantity's intervals were made: method -> the quantities that used it."""
    quantities = {
        "seconds per step": [r.seconds_per_step for r in result.rows],
        "throughput": [r.units_per_second for r in result.rows],
        "phases": [m for r in result.rows for m in (r.data_wait, r.copy, r.compute, r.optimizer)],
        "knee": [result.knee],
        "splits": [s.seconds_per_step for s in result.splits],
        "splits over the whole batch": [s.over_whole for s in result.splits],
    }
    methods: dict[str, list[str]] = {}
    for name, values in quantities.items():
        for m in values:
            if m is not None and m.interval and name not in methods.setdefault(m.interval, []):
                methods[m.interval].append(name)
    return methods
