"""Which tables stand behind what more devices buy? The same for the terminal and the page, a tuple of texts each."""

from __future__ import annotations

import math
from collections.abc import Sequence

from batchscope.analysis.network import ring_seconds
from batchscope.analysis.step_time import scaled
from batchscope.records import DeviceChoice, Measured, Network, ScalingResult, ScalingRow
from batchscope.report.noise_words import ABSENT, cell, known
from batchscope.report.profile_words import size_of
from batchscope.report.scaling_words import share_of
from batchscope.report.terminal import Content
from batchscope.report.words import count, number, plain

MS, MICRO, MEGA, PERCENT = 1e3, 1e6, 1e-6, 100.0
SHOWN = 3  # batch sizes of the predictions that fit a screen; the page has all


def screen_tables(result: ScalingResult, dash: str = "-") -> list[Content]:
    """What fits a screen, those without rows left out."""
    tables = (
        steps_table(result, dash),
        speedup_table(result, dash),
        goal_table(result, dash),
        choices_table(result, dash),
        predictions_table(result, dash, few=True),
        fit_table(result, dash),
    )
    return [t for t in tables if t.cells]


# --- as measured ---


def steps_table(result: ScalingResult, dash: str = "-") -> Content:
    """Seconds per step by device count and global batch size, and what of them is averaging."""
    headings = ["devices", "batch size", "step (ms)", "exposed averaging (ms)", "share (%)", "examples per second"]
    cells = [
        [
            count(r.devices),
            count(r.batch_size),
            cell(scaled(r.seconds_per_step, MS), dash),
            *exposed_cells(r, dash),
            cell(r.examples_per_second, dash),
        ]
        for r in result.rows
    ]
    return Content("Seconds per step by devices and global batch size (95 % intervals)", headings, cells)


def exposed_cells(row: ScalingRow, dash: str) -> list[str]:
    """Exposed averaging in milliseconds and as a share; a dash on one device, which averages nothing."""
    if row.devices == 1:
        return [ABSENT, ABSENT]
    share = share_of(row.exposed, row.seconds_per_step)
    return [cell(scaled(row.exposed, MS), dash), cell(share, dash)]


def speedup_table(result: ScalingResult, dash: str = "-") -> Content:
    """Strong and weak scaling of several devices."""
    headings = ["devices", "batch size", "strong speed-up", "batch per device", "weak efficiency (%)"]
    cells = [
        [
            count(r.devices),
            count(r.batch_size),
            cell(r.strong_speedup, dash),
            per_device(r.batch_size, r.devices),
            cell(scaled(r.weak_efficiency, PERCENT), dash) if r.weak_efficiency is not None else ABSENT,
        ]
        for r in result.rows
        if r.devices > 1
    ]
    title = (
        "Strong scaling: times as fast as one device with the same global batch; weak scaling: throughput over that "
        "of as many single devices with the same batch per device"
    )
    return Content(title, headings, cells)


def per_device(batch_size: int, devices: int) -> str:
    """Examples that each device computes; some have one more where they cannot be shared evenly."""
    return count(batch_size // devices) if batch_size % devices == 0 else number(batch_size / devices)


# --- to the goal ---


def goal_table(result: ScalingResult, dash: str = "-") -> Content:
    """What it takes to the goal on each device count at its best batch size."""
    headings = ["devices", "batch size", "seconds to goal", "speed-up", "device-seconds", "how"]
    cells = [
        [
            count(c.devices),
            count(c.batch_size),
            cell(c.seconds_to_goal, dash),
            cell(c.speedup, dash),
            cell(c.device_seconds, dash),
            how_of(c),
        ]
        for c in result.choices
    ]
    useful = f"; {count(result.most_useful)} are the most useful" if result.most_useful is not None else ""
    title = f"To the goal by device count, each at its best batch size (speed-up over one device at its own){useful}"
    return Content(title, headings, cells, ("how",))


def how_of(choice: DeviceChoice) -> str:
    """Whether its seconds were measured, and its steps."""
    return f"{'measured' if choice.measured else 'predicted'}{', steps extrapolated' if choice.extrapolated else ''}"


def choices_table(result: ScalingResult, dash: str = "-") -> Content:
    """What the seconds to the goal are made of."""
    cells = [
        [
            count(c.devices),
            count(c.batch_size),
            cell(c.steps_to_goal, dash),
            cell(scaled(c.seconds_per_step, MS), dash),
        ]
        for c in result.choices
    ]
    headings = ["devices", "batch size", "steps to goal", "step (ms)"]
    return Content("What these seconds are made of: steps to the goal × seconds per step", headings, cells)


# --- predicted ---


def predictions_table(result: ScalingResult, dash: str = "-", few: bool = False) -> Content:
    """Predicted seconds per step: a row per device count, a column per batch size."""
    at = {(p.devices, p.batch_size): p.seconds_per_step for p in result.predictions}
    sizes = sorted({b for _, b in at})
    shown = spread(sizes, SHOWN) if few else sizes
    cells = [
        [count(n), *(cell(scaled(at[n, b], MS), dash) if (n, b) in at else ABSENT for b in shown)]
        for n in sorted({n for n, _ in at})
    ]
    less = f"; {len(sizes) - len(shown)} more batch sizes are on the page" if len(shown) < len(sizes) else ""
    links = " and ".join(dict.fromkeys(plain(p.how) for p in result.predictions))
    title = f"Predicted ms per step by devices and global batch size ({links}){less}"
    return Content(title, ["devices", *(f"batch size {count(b)}" for b in shown)], cells)


def spread(sizes: Sequence[int], most: int) -> list[int]:
    """At most so many of the sizes, the smallest and the largest among them, evenly apart."""
    if len(sizes) <= most:
        return list(sizes)
    return [sizes[round(k * (len(sizes) - 1) / (most - 1))] for k in range(most)]


# --- fitted ---


def fit_table(result: ScalingResult, dash: str = "-") -> Content:
    """The network's and the model's parameters, those that are known."""
    network, fit = result.network, result.fit
    lines: list[tuple[str, Measured, str]] = [
        ("latency (µs)", scaled(network.latency, MICRO), "until the first byte comes"),
        ("bandwidth (MB/s)", scaled(network.bandwidth, MEGA), "of each device's link"),
        *((f"slowdown k of {n} devices", k, "computing at once, over alone") for n, k in fit.slowdown.items()),
        ("wrapper d (ms)", scaled(fit.wrapper, MS), "what a replica's step takes more"),
        ("factor f", fit.factor, "averaging in a step, over the same all-reduces alone"),
        ("overlap g", fit.overlap, "1 nothing hides behind computing, 10 nearly all"),
    ]
    cells = [[name, cell(m, dash), meaning] for name, m, meaning in lines if known(m)]
    for name, sd in (("network's residual (%)", network.residual_sd), ("model's residual (%)", fit.residual_sd)):
        if math.isfinite(sd):
            cells.append([name, number(PERCENT * sd), "standard deviation from the measured medians"])
    headings = ["parameter", "value", "what it is"]
    return Content("The network and the model, as fitted", headings, cells, ("parameter", "what it is"))


def reduces_table(result: ScalingResult, dash: str = "-") -> Content:
    """Bare all-reduces beside the fitted ring."""
    link = link_of(result)
    cells = [
        [
            count(n),
            size_of(size),
            number(MS * seconds),
            number(MS * ring_seconds(link, n, size)) if link is not None else ABSENT,
        ]
        for n, size, seconds in result.network.points
    ]
    headings = ["devices", "message", "median (ms)", "fitted ring (ms)"]
    return Content("Bare all-reduces, and the ring that was fitted to them", headings, cells)


def link_of(result: ScalingResult) -> Network | None:
    """The fitted link; None where there is none."""
    latency, bandwidth = result.network.latency.estimate, result.network.bandwidth.estimate
    return None if latency is None or not bandwidth else Network(latency, bandwidth)


def misses_table(result: ScalingResult) -> Content:
    """How far the model is from every step on several devices that was timed."""
    cells = [[count(n), count(b), f"{PERCENT * miss:+.1f}"] for n, b, miss in result.fit.residuals]
    return Content("The model over the measured median", ["devices", "batch size", "model is off by (%)"], cells)
