"""Do replayed steps train as eager ones do? Recorded on the CPU; CUDA's own: `test_graphs_on_gpu.py`."""

import pytest
import torch
import torch.nn.functional as F
from tapes import GRAPHED, Stopped, assert_trains_alike, epochs, training
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from batchscope.records import Engine
from batchscope.training.batches import tensors_in
from batchscope.training.checkpoint import Checkpoint
from batchscope.training.graphs import WARM_UP
from batchscope.training.loop import train
from toys import CPU, SIZE, examples, sgd, toy, trial


def adamw(model, lr):
    return torch.optim.AdamW(model.parameters(), lr=lr, fused=True)  # its counters are not read on the host


# --- steps ---


@pytest.mark.parametrize("optimizer", [sgd, adamw])
@pytest.mark.parametrize("annealed", [False, True])
@pytest.mark.parametrize("clip", [None, 0.3])
def test_replays_equal_eager_steps(rehearsal, optimizer, annealed, clip):
    """With a ragged last batch, momentum or moments, clipping, and a learning rate that changes at every step."""
    schedule = (lambda o: CosineAnnealingLR(o, 20)) if annealed else None
    step = assert_trains_alike(toy(optimizer=optimizer, clip_norm=clip), epochs(3), schedule)
    assert step.reason == ""
    assert step.replays == rehearsal.log.count("replay") == 3 * 4 - WARM_UP
    assert rehearsal.log == ["run"] * (WARM_UP - 1) + ["watch", "capture"] + ["replay"] * 9


def test_plain_sgd_takes_its_learning_rate_from_the_tensor(rehearsal):
    """The first update after the rate changed is in proportion: what was captured is not the number."""
    task = toy(optimizer=lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr))
    model, optimizer, step, once = training(task, GRAPHED)
    batch = examples(8)
    for _ in range(WARM_UP + 1):
        once(batch)
    moved = []
    for rate in (0.05, 0.0, 0.2):
        before = model[0].weight.detach().clone()
        optimizer.param_groups[0]["lr"] = rate
        gradient = torch.autograd.grad(F.cross_entropy(model(batch[0]), batch[1]), model[0].weight)[0]
        once(batch)
        moved.append(before - model[0].weight.detach())
        torch.testing.assert_close(moved[-1], rate * gradient, rtol=1e-4, atol=1e-7)
    assert step.replays == 4


def test_micro_batches_are_captured_with_the_whole_step(rehearsal):
    step = assert_trains_alike(toy(), epochs(2), micro_batch_size=3)  # of 3, 3 and 2
    assert (step.reason, step.replays) == ("", 5)
    counted = toy(count=lambda batch: len(batch[0]))
    *_, step, _ = training(counted, GRAPHED, micro_batch_size=3)
    assert "counted" in step.reason


def test_batch_norm_keeps_its_statistics(rehearsal):
    task = toy(model=lambda: nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)))
    step = assert_trains_alike(task, epochs(2))
    assert step.replays == 5


def test_gradients_outside_the_optimiser_pile_up_as_they_do_eagerly(rehearsal):
    """No step zeroes them: a replay adds to the same tensor."""
    task = toy(optimizer=lambda model, lr: torch.optim.SGD(model[2].parameters(), lr=lr))
    eager, _, _, eagerly = training(task, Engine())
    model, _, step, once = training(task, GRAPHED)
    for batch in epochs(2, ragged=5):
        eagerly(batch), once(batch)
        torch.testing.assert_close(model[0].weight.grad, eager[0].weight.grad, rtol=1e-5, atol=1e-7)
    assert step.replays > 0


def test_batches_handed_in_are_not_written_to(rehearsal):
    *_, step, once = training(toy(), GRAPHED)
    batches, copies = epochs(2, ragged=8), epochs(2, ragged=8)
    for batch in batches:
        once(batch)
    assert step.replays > 0
    assert all(torch.equal(a, b) for a, b in zip(tensors_in(batches), tensors_in(copies), strict=True))


def test_dict_batches_and_inputs_that_the_model_overwrites(rehearsal):
    def in_place(model, batch):
        return F.cross_entropy(model(batch["x"].mul_(2)), batch["y"])

    task = toy(loss=None, metrics={}, step=in_place)
    pairs = [dict(zip("xy", pair, strict=True)) for pair in epochs(2)]
    eager, _, _, eagerly = training(task, Engine())
    model, _, step, once = training(task, GRAPHED, batch_size=8)
    for batch in pairs:
        eagerly({key: value.clone() for key, value in batch.items()})
        once({key: value.clone() for key, value in batch.items()})
    torch.testing.assert_close(model[0].weight, eager[0].weight, rtol=1e-5, atol=1e-7)
    assert step.replays == 5


def test_without_a_batch_size_every_shape_has_a_graph_of_its_own(rehearsal):
    """As whoever times one step at several batch sizes needs it."""
    task = toy()
    eager, _, _, eagerly = training(task, Engine())
    model, _, step, once = training(task, GRAPHED)
    for batch in epochs(6, full=1, ragged=3):
        eagerly(batch), once(batch)
    torch.testing.assert_close(model[0].weight, eager[0].weight, rtol=1e-5, atol=1e-7)
    assert step.replays == 2 * (6 - WARM_UP)
    assert rehearsal.log.count("capture") == 2


def test_a_ragged_batch_first_is_not_mistaken_for_a_full_one(rehearsal):
    """A trial that is resumed at the end of an epoch begins with it."""
    step = assert_trains_alike(toy(), [examples(3, i) for i in range(5)] + epochs(2))
    assert step.replays == 5


# --- trials ---


def same_traces(a, b):
    for x, y in zip(a.trace, b.trace, strict=True):
        assert (x.step, x.examples) == (y.step, y.examples)
        assert y.validation["loss"] == pytest.approx(x.validation["loss"], rel=1e-5)
        assert y.distance == pytest.approx(x.distance, rel=1e-5)
    assert (a.outcome, a.ended_by) == (b.outcome, b.ended_by)


@pytest.mark.parametrize("optimizer", [sgd, adamw])
def test_a_trial_is_the_same_and_goes_on_from_its_checkpoint_in_mid_epoch(rehearsal, tmp_path, optimizer):
    """After a resume the first full batches are eager again; the schedule and the optimiser's state go on."""
    task = toy(optimizer=optimizer, schedule=CosineAnnealingLR, clip_norm=1.0)
    spec = trial(8, budget=4 * SIZE, cadence=20)
    plain = train(task, spec, device=CPU)
    same_traces(plain, train(task, spec, device=CPU, engine=GRAPHED))
    assert rehearsal.log.count("replay") == 4 * (SIZE // 8) - WARM_UP
    seen = []

    def stop(line):
        seen.append(line)
        if len(seen) == 6:
            raise Stopped

    checkpoint = Checkpoint(tmp_path / "a.pt", seconds=0)
    with pytest.raises(Stopped):
        train(task, spec, device=CPU, engine=GRAPHED, checkpoint=checkpoint, on_evaluation=stop)
    assert "lr" in torch.load(checkpoint.path, weights_only=True)["parts"]["optimizer"]["param_groups"][0]
    rehearsal.log.clear()
    same_traces(plain, train(task, spec, device=CPU, engine=GRAPHED, checkpoint=checkpoint))
    assert rehearsal.log[:4] == ["run", "run", "watch", "capture"]


def test_a_batch_of_all_examples_is_a_full_one(rehearsal):
    """Where the batch size is larger than the data set."""
    task, spec = toy(), trial(2 * SIZE, budget=6 * SIZE, cadence=SIZE)
    same_traces(train(task, spec, device=CPU), train(task, spec, device=CPU, engine=GRAPHED))
    assert rehearsal.log.count("replay") == 6 - WARM_UP


def test_checkpoints_hold_learning_rates_as_numbers(rehearsal):
    _, optimizer, step, once = training(toy(), GRAPHED, schedule=lambda o: CosineAnnealingLR(o, 20))
    for batch in epochs(2):
        once(batch)
    assert step.replays > 0
    (group,) = optimizer.state_dict()["param_groups"]
    assert type(group["lr"]) is float
    assert group["fused"] is None
    assert group["foreach"] is None
