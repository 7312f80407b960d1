"""What did a profile find, on a screen of text?

The answer's sentences first, then narrow tables, each with whose loop its seconds belong to: seconds and throughput,
where a step's time goes, what a peak is made of, the probes, the splits. Every text is a rich Text, never markup.
"""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from batchscope.records import MemoryProfile, ProfileResult
from batchscope.report.profile_facts import device_of, facts_of, notes_of
from batchscope.report.profile_words import (
    ABSENT,
    BOUND,
    OUTCOMES,
    PARTS,
    answer_sentences,
    cell,
    largest_parted,
    size_of,
    written_split,
)
from batchscope.report.terminal import Content, plain_console, print_answer, print_measured
from batchscope.report.words import count, loop_of, number, plain, sentence

MS, PERCENT, MILLI = 1e3, 100.0, 1e3


def print_profile(result: ProfileResult, console: Console) -> None:
    """Print the profile's answer to `console`: sentences, tables, how it was measured, page."""
    out = console if console.is_terminal else plain_console(console)
    heading = f"{plain(result.task)}: seconds and bytes against batch size, {device_of(result.conditions)}"
    print_answer(out, heading, answer_sentences(result), contents_of(result))
    for probe in result.memory.probes if result.memory is not None else ():
        if probe.reason:
            outcome = OUTCOMES.get(probe.outcome, plain(probe.outcome))
            out.print(Text(f"Micro-batch {count(probe.micro_batch_size)}, {outcome}: {sentence(probe.reason)}"))
    print_measured(out, facts_of(result), {}, notes_of(result), result.report)


NOTHING = Content("", (), [])


def contents_of(result: ProfileResult) -> list[Content]:
    """The tables, those without rows left out."""
    tables = (
        throughput_table(result),
        phases_table(result),
        efficiency_table(result),
        parts_table(result.memory),
        probes_table(result.memory),
        splits_table(result),
    )
    return [t for t in tables if t.cells]


def throughput_table(result: ProfileResult) -> Content:
    """Seconds, throughput and bytes by micro-batch size."""
    headings = ["micro-batch size", "step (ms)", f"{plain(result.unit)} per second", "peak memory", "bound by"]
    cells = [
        [
            count(r.micro_batch_size),
            cell(r.seconds_per_step, MS),
            cell(r.units_per_second),
            size_of(r.peak_bytes) if r.peak_bytes is not None else predicted(r.predicted_peak_bytes),
            BOUND.get(r.bound_by, plain(r.bound_by)) or ABSENT,
        ]
        for r in result.rows
    ]
    title = f"Seconds and bytes by micro-batch size ({loop_of(result.loop)}; ~ marks a predicted peak)"
    return Content(title, headings, cells, ("bound by",))


def predicted(amount: int | None) -> str:
    """A peak that no probe measured."""
    return ABSENT if amount is None else f"~{size_of(amount)}"


def phases_table(result: ProfileResult) -> Content:
    """Where a step's time goes."""
    headings = ("micro-batch size", "wait for data", "copy", "compute", "optimiser")
    cells = [
        [count(r.micro_batch_size), *(cell(m, MS) for m in (r.data_wait, r.copy, r.compute, r.optimizer))]
        for r in result.rows
        if r.compute is not None
    ]
    title = f"Where a step's time goes, in ms ({loop_of(result.loop)}; compute is forward and backward)"
    return Content(title, headings, cells)


def efficiency_table(result: ProfileResult) -> Content:
    """FLOPs utilisation and energy, where either was measured."""
    headings = ("micro-batch size", "FLOPs utilisation (%)", "mJ per example")
    cells = [
        [count(r.micro_batch_size), cell(r.flops_utilization, PERCENT), cell(r.joules_per_example, MILLI)]
        for r in result.rows
        if r.flops_utilization is not None or r.joules_per_example is not None
    ]
    return Content(f"What the device makes of it ({loop_of(result.loop)})", headings, cells)


def parts_table(memory: MemoryProfile | None) -> Content:
    """What the training peak of the largest probe that fits is made of."""
    probe = largest_parted(memory)
    if probe is None or probe.parts is None:
        return NOTHING
    amounts = [(name, getattr(probe.parts, field)) for field, name in PARTS.items()]
    whole = sum(a for _, a in amounts)
    cells = [[name, size_of(a), f"{number(100 * a / (whole or 1))} %"] for name, a in amounts]
    title = f"What the peak of training is made of at micro-batch size {count(probe.micro_batch_size)}"
    cells.append(["peak of training", size_of(whole), ""])
    return Content(title, ("part", "bytes", "share"), cells, ("part",))


def probes_table(memory: MemoryProfile | None) -> Content:
    """The probes in the order they ran; their reasons follow below the tables, where there is room."""
    if memory is None:
        return NOTHING
    cells = [
        [
            count(p.micro_batch_size),
            OUTCOMES.get(p.outcome, plain(p.outcome)),
            *map(size_of, (p.peak_bytes, p.training_bytes, p.evaluation_bytes, p.checkpoint_bytes)),
        ]
        for p in memory.probes
    ]
    title = f"Memory probes in the order they ran, limit {size_of(memory.limit_bytes)}"
    headings = ("micro-batch size", "outcome", "peak", "training", "evaluation", "checkpoint")
    return Content(title, headings, cells, ("outcome",))


def splits_table(result: ProfileResult) -> Content:
    """Batch sizes as micro-batches x accumulation."""
    cells = [
        [
            count(s.batch_size),
            written_split(s),
            cell(s.seconds_per_step, MS),
            cell(s.over_whole),
            "measured" if s.measured else "predicted",
        ]
        for s in result.splits
    ]
    title = f"Batch sizes as micro-batch × accumulation ({loop_of(result.loop)})"
    return Content(title, ("batch size", "split", "step (ms)", "over the whole", "how"), cells, ("how",))
