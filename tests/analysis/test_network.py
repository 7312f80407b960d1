"""Are seconds of an all-reduce fitted and predicted as the formulas say?"""

from __future__ import annotations

import math

import pytest

from batchscope.analysis.network import Reduce, fit_network, medians, ring_seconds, tree_seconds
from batchscope.records import AllReduceTiming, Network

from .scaling_worlds import World, made_up_pass

WORLD = World()


@pytest.mark.parametrize(("devices", "size"), [(1, 100), (2, 100), (3, 10**6), (8, 10**9), (1024, 4)])
def test_a_ring_is_counted_pass_by_pass(devices: int, size: int) -> None:
    assert ring_seconds(WORLD.link, devices, size) == pytest.approx(WORLD.ring(devices, size))


@pytest.mark.parametrize("devices", [2, 3, 8, 1000])
def test_a_tree_goes_up_and_down_its_levels(devices: int) -> None:
    levels, reached = 0, 1
    while reached < devices:
        levels, reached = levels + 1, 2 * reached
    link = Network(1e-5, 1e9)
    assert tree_seconds(link, devices, 0) == pytest.approx(2 * levels * 1e-5)
    assert tree_seconds(link, devices, 1e9) - tree_seconds(link, devices, 0) == pytest.approx(2.0)


def test_one_device_averages_nothing() -> None:
    assert ring_seconds(WORLD.link, 1, 1e9) == tree_seconds(WORLD.link, 1, 1e9) == 0.0
    assert Reduce(WORLD.link).seconds(1, (10, 20)) == 0.0


def test_latency_and_bandwidth_are_found_exactly_without_noise() -> None:
    fit = fit_network(made_up_pass(WORLD).all_reduces)
    assert fit.latency.estimate == pytest.approx(WORLD.link.latency, rel=1e-4)
    assert fit.bandwidth.estimate == pytest.approx(WORLD.link.bandwidth, rel=1e-4)
    assert fit.residual_sd < 1e-4


def test_their_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """95 % intervals, 60 passes: at least 51 of each (below it with a chance of 0.2 %)."""
    held = {"latency": 0, "bandwidth": 0}
    for seed in range(60):
        fit = fit_network(made_up_pass(World(noise=0.1), counts=(1, 2), seed=seed).all_reduces)
        for name in held:
            m, true = getattr(fit, name), getattr(WORLD.link, name)
            held[name] += m.low <= true <= m.high
    assert min(held.values()) >= 51, held


def test_two_sizes_are_too_few() -> None:
    fit = fit_network([AllReduceTiming(2, 100, (1e-4, 1e-4)), AllReduceTiming(2, 10**6, (1e-3, 1e-3))])
    assert fit.latency.estimate is None
    assert "need 3 sizes of all-reduce, 2 were timed" in fit.reason
    assert len(fit.points) == 2


def test_measured_seconds_stand_where_they_were_measured() -> None:
    """Also where no ring would be so slow: a message that outgrows a cache, say."""
    odd = {(2, 100): 1e-4, (2, 10_000): 5e-3, (2, 1_000_000): 1e-2}
    reduce = Reduce(Network(5e-5, 1e9), odd)
    assert [reduce.seconds(2, (m,)) for _, m in odd] == pytest.approx(list(odd.values()))
    between = reduce.seconds(2, (1000,))
    assert between == pytest.approx(math.sqrt(1e-4 * 5e-3))
    assert reduce.seconds(2, (100, 1000)) == pytest.approx(1e-4 + between)


def test_other_device_counts_are_missed_alike() -> None:
    """Twice as slow as the ring on 2 devices: twice as slow on 8."""
    link = Network(5e-5, 1e9)
    slow = {(2, m): 2 * ring_seconds(link, 2, m) for m in (100, 10_000, 1_000_000)}
    reduce = Reduce(link, slow)
    assert reduce.seconds(8, (100,)) == pytest.approx(2 * ring_seconds(link, 8, 100))
    assert reduce.seconds(8, (10_000,), tree=True) == pytest.approx(2 * tree_seconds(link, 8, 10_000))


def test_beyond_the_sizes_measured_the_ring_goes_on() -> None:
    reduce = Reduce(WORLD.link, medians(made_up_pass(WORLD).all_reduces))
    for size in (16, 10**10):
        assert reduce.seconds(4, (size,)) == pytest.approx(WORLD.ring(4, size), rel=1e-3)
