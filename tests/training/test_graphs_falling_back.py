"""Is a step that a replay would get wrong found out, and trained as if no replay had been tried?"""

import contextlib
import random
import types
import warnings

import pytest
import torch
import torch.nn.functional as F
from tapes import GRAPHED, assert_trains_alike, epochs, training
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from batchscope.records import Engine
from batchscope.training import graphs
from batchscope.training.graphs import layout
from toys import examples, mlp, toy


def assert_falls_back(task, sentence, batches=None, **options):
    """The reason is given once, and training is as eager as if nothing had been tried: bit for bit."""
    eager, its_optimizer, _, eagerly = training(task, Engine(), **options)
    model, optimizer, step, once = training(task, GRAPHED, **options)
    for batch in batches or epochs(2):
        eagerly(batch), once(batch)
    assert sentence in step.reason
    assert step.replays == 0
    for got, expected in zip(model.state_dict().values(), eager.state_dict().values(), strict=True):
        assert torch.equal(got, expected)
    for got, expected in zip(model.parameters(), eager.parameters(), strict=True):
        assert got.grad is expected.grad is None or torch.equal(got.grad, expected.grad)
    states = zip(optimizer.state_dict()["state"].values(), its_optimizer.state_dict()["state"].values(), strict=True)
    for got, expected in states:
        assert got.keys() == expected.keys()
        assert all(torch.equal(torch.as_tensor(got[k]), torch.as_tensor(expected[k])) for k in got)


def test_on_the_cpu_there_are_no_graphs():
    assert_falls_back(toy(), "on CUDA only")


def test_a_step_that_waits_for_the_device_is_not_captured(rehearsal):
    def reads(model, batch):
        loss = F.cross_entropy(model(batch[0]), batch[1])
        return loss if loss.item() > 0 else loss * 2

    task = toy(loss=None, metrics={}, step=reads)
    assert_falls_back(task, "operation not permitted")  # seen at the capture
    rehearsal._waits = True
    rehearsal.log.clear()
    assert_falls_back(task, "waits for the device")  # seen before
    assert "capture" not in rehearsal.log


class Rebinding(nn.Module):
    """A buffer that is replaced, not changed in place; and one module attribute of each kind."""

    def __init__(self, how):
        super().__init__()
        self.body, self.how, self.steps, self.cache = mlp(), how, 0, None
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        out = self.body(x)
        if self.how == "buffer":
            self.mean = 0.9 * self.mean + 0.1 * out.detach().mean(0)
        elif self.how == "counter":
            self.steps += 1
        elif self.how == "late":
            self.steps = min(self.steps + 1, 1)
        self.cache = out
        return out + self.mean


@pytest.mark.parametrize(("how", "sentence"), [("buffer", "replaces a tensor"), ("counter", "'steps'")])
def test_what_a_replay_would_not_see_is_found_out(rehearsal, how, sentence):
    assert_falls_back(toy(model=lambda: Rebinding(how)), sentence)


def test_attributes_that_no_step_reads_do_no_harm(rehearsal):
    assert assert_trains_alike(toy(model=lambda: Rebinding("late")), epochs(2)).replays == 5


@pytest.mark.parametrize("draw", [torch.rand, lambda n: torch.tensor([random.random()])])
def test_random_numbers_of_the_host_are_not_repeated(rehearsal, draw):
    task = toy(loss=lambda output, target: F.cross_entropy(output * draw(1), target), metrics={})
    *_, step, once = training(task, GRAPHED)
    for batch in epochs(2):
        once(batch)
    assert "random numbers on the host" in step.reason
    assert step.replays == 0


def test_optimisers_that_keep_numbers_on_the_host_are_named(rehearsal):
    adagrad = toy(optimizer=lambda model, lr: torch.optim.Adagrad(model.parameters(), lr=lr))
    assert_falls_back(adagrad, "got Adagrad")
    assert rehearsal.log == []
    tensor = toy(optimizer=lambda model, lr: torch.optim.SGD(model.parameters(), lr=torch.tensor(lr)))
    assert_falls_back(tensor, "learning rates as numbers")
    unfused = toy(optimizer=lambda model, lr: torch.optim.AdamW(model.parameters(), lr=lr))  # reads its counters
    assert_falls_back(unfused, "operation not permitted")


def test_a_schedule_of_the_momentum_ends_the_replays(rehearsal):
    """It is fixed by the capture: one replay is right, and the next step is eager."""
    step = assert_trains_alike(toy(), epochs(2), lambda o: OneCycleLR(o, 0.1, total_steps=20))
    assert "more than the learning rate" in step.reason
    assert step.replays == 1


def test_other_objects_in_a_batch_are_named(rehearsal):
    class Thing:
        pass

    task = toy(loss=None, metrics={}, step=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]))
    assert_falls_back(task, "other things than tensors", [(*examples(8), Thing())] * 5)


def test_shapes_are_not_collected_without_end(rehearsal):
    *_, step, once = training(toy(), GRAPHED)
    for size in range(1, 2 * graphs.MOST_SHAPES):
        once(examples(size))
    assert len(step._shapes) == graphs.MOST_SHAPES


def test_layouts_tell_batches_apart():
    x, y = examples(8)
    same = [(x, y), (x + 1, y), (x.t().contiguous().t(), y)]
    assert len({layout(batch) for batch in same}) == 1
    others = [(x, y), [x, y], (y, x), (x,), (x[:3], y[:3]), (x.double(), y), {"x": x, "y": y}, {"y": y, "x": x}]
    others += [(x, y, 1), (x, y, 2), (x, y, "a"), (x, (y,)), (x, y, None)]
    assert len({layout(batch) for batch in others}) == len(others)
    assert layout((x, object())) != layout((x, object()))


# --- CUDA's recorder, as far as it can be seen from here ---


def made_up_recorder():
    """Without its stream and its pool; it runs functions where they are."""
    recorder = object.__new__(graphs.CudaRecorder)
    recorder.device, recorder.pool = torch.device("cuda"), "pool"
    recorder.stream = types.SimpleNamespace(device_index=0)
    recorder.run = lambda function: function()
    return recorder


def test_synchronisations_are_told_from_other_warnings(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def silent():
        assert modes[-1] == "warn"

    def waiting():
        warnings.warn("called a synchronizing CUDA operation (Triggered internally at ...)", stacklevel=1)
        warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)

    def other():
        warnings.warn("an experimental kernel", stacklevel=1)

    recorder = made_up_recorder()
    assert recorder.waits(waiting)
    assert not recorder.waits(silent)
    with pytest.warns(UserWarning, match="experimental kernel"):
        assert not recorder.waits(other)
    with pytest.raises(ZeroDivisionError):
        recorder.waits(lambda: 1 / 0)
    assert modes == ["warn", 0] * 4


def test_after_an_invalid_capture_stream_generator_and_allocator_are_as_before(monkeypatch):
    """torch.cuda.graph's way out raises before it leaves its stream: here it is made to."""
    done = []

    class Graph:
        def reset(self):
            done.append("graph reset")

    class Generator:
        def clone_state(self):
            return "as it was"

        def graphsafe_set_state(self, state):
            done.append(f"generator {state}")

    @contextlib.contextmanager
    def capture(graph, **options):
        assert options["capture_error_mode"] == "thread_local"
        try:
            yield
        finally:
            raise RuntimeError("capture_end: operation failed due to a previous error")

    def end(device, pool):
        done.append(f"allocator {device} {pool}")
        raise RuntimeError("not currently recording")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "current")
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: done.append(f"stream {stream}"))
    monkeypatch.setattr(torch.cuda, "default_generators", (Generator(),))
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    with pytest.raises(RuntimeError, match="capture_end"):
        made_up_recorder().capture(lambda: None)
    assert done == ["stream current", "graph reset", "generator as it was", "allocator 0 pool"]
