"""Seeds make every generator repeat, states go round, and nothing drawn inside leaks out."""

import io
import random

import numpy as np
import pytest
import torch

from batchscope.training.seeding import (
    drawing_from,
    mix,
    permutation,
    rng_state,
    seed_everything,
    set_rng_state,
    torch_drawing_from,
)

CPU = torch.device("cpu")


def draw():
    """Numbers from each generator, the first normal of a pair among them."""
    host = random.random(), random.gauss(), np.random.rand(), np.random.randn()
    return *host, torch.rand(1).item(), torch.randn(1).item()


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**40 + 3, 2**63, 2**64 + 5])
def test_any_seed_repeats(seed):
    seed_everything(seed)
    first = draw()
    seed_everything(seed)
    assert draw() == first


def test_state_goes_round_through_a_file_that_cannot_run_code():
    seed_everything(3)
    draw()  # leaves one normal of a pair behind, in Python's and in numpy's generator
    file = io.BytesIO()
    torch.save(rng_state(CPU), file)
    expected = draw(), draw()
    seed_everything(4)
    file.seek(0)
    set_rng_state(torch.load(file, weights_only=True), CPU)
    assert (draw(), draw()) == expected


def test_of_the_cards_only_the_one_that_is_trained_on_counts(monkeypatch):
    """Whatever its number is when the trial goes on, and however many others there are. The cards are made up."""
    streams = {3: torch.tensor([33]), 0: torch.tensor([10])}

    def put(state, device):
        streams[device.index] = state

    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: streams[device.index])
    monkeypatch.setattr(torch.cuda, "set_rng_state", put)
    saved = rng_state(torch.device("cuda", 3))
    set_rng_state(saved, torch.device("cuda", 0))
    assert {n: int(state) for n, state in streams.items()} == {3: 33, 0: 33}
    set_rng_state(rng_state(CPU), torch.device("cuda", 0))
    set_rng_state(saved, CPU)
    assert {n: int(state) for n, state in streams.items()} == {3: 33, 0: 33}


def test_what_is_drawn_inside_leaves_no_mark():
    seed_everything(3)
    expected = draw(), draw()
    seed_everything(3)
    first = draw()
    with drawing_from(2**62):
        inside = draw()

    def fails():
        with drawing_from(2**62):
            assert draw() == inside
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    with torch_drawing_from(7, torch.device("cpu")):
        noise = torch.rand(3)
    with torch_drawing_from(7, torch.device("cpu")):
        assert torch.equal(torch.rand(3), noise)
    assert (first, draw()) == expected


def test_mixed_seeds_and_permutations_follow_from_their_parts_alone():
    assert len({mix(a, b) for a in range(50) for b in range(-1, 50)}) == 50 * 51
    assert mix(1, 23) != mix(12, 3)
    assert all(0 <= mix(i) < 2**63 for i in range(99))
    torch.manual_seed(0)
    first = permutation(5, 1, 100)
    assert torch.equal(permutation(5, 1, 100), first)
    assert sorted(first.tolist()) == list(range(100))
    assert abs(np.corrcoef(first, permutation(5, 2, 100))[0, 1]) < 0.4  # 4 standard deviations of a chance correlation
