"""Replayed steps train as eager ones do: held to a graph of recorded operations here, to CUDA's where there is one.

`Tape` behaves on the CPU as a CUDA graph does: Python runs once, while operations are recorded; numbers that it
takes along are fixed; what it reads from a tensor's memory on the host is refused; and a replay runs the operations
again on the same tensors. Capturing leaves no trace in any tensor.
"""

import contextlib
import random
import types
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR
from torch.utils._python_dispatch import TorchDispatchMode

from batchscope.records import Engine
from batchscope.training import graphs
from batchscope.training.batches import tensors_in
from batchscope.training.checkpoint import Checkpoint
from batchscope.training.graphs import WARM_UP, layout
from batchscope.training.loop import train
from batchscope.training.seeding import seed_everything
from batchscope.training.step import make_model, make_step
from toys import CPU, SIZE, examples, mlp, mlp_with_state, sgd, toy, trial

GRAPHED = Engine(graphed=True)


class Tape(TorchDispatchMode):
    """One recording."""

    def __init__(self):
        super().__init__()
        self.calls, self.written = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        self._remember(func, args, kwargs or {})
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def _remember(self, func, args, kwargs):
        """What the operation is about to overwrite."""
        named = {a.name: kwargs.get(a.name) for a in func._schema.arguments}
        named |= dict(zip((a.name for a in func._schema.arguments), args, strict=False))
        changed = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        if "batch_norm" in func._schema.name:  # whose schema does not say so
            changed += ["running_mean", "running_var"]
        for tensor in tensors_in([named.get(name) for name in changed]):
            self.written.append((tensor, tensor.detach().clone()))

    def undo(self):
        for tensor, before in reversed(self.written):
            tensor.detach().copy_(before)

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, out in self.calls:
            for recorded, fresh in zip(tensors_in([out]), tensors_in([func(*args, **kwargs)]), strict=True):
                if recorded.data_ptr() != fresh.data_ptr():
                    recorded.copy_(fresh)


class Rehearsal:
    """A recorder of tapes; `log` is what was asked of it."""

    def __init__(self, waits=False):
        self.log, self._waits = [], waits

    def run(self, function):
        self.log.append("run")
        function()

    def waits(self, function):
        self.log.append("watch")
        function()
        return self._waits

    def capture(self, function):
        self.log.append("capture")
        tape, drawn = Tape(), torch.get_rng_state()
        try:
            with tape:
                function()
        finally:
            tape.undo()
            torch.set_rng_state(drawn)

        def replay():
            self.log.append("replay")
            tape.replay()

        return replay


@pytest.fixture
def rehearsal(monkeypatch):
    recorder = Rehearsal()
    monkeypatch.setattr(graphs, "recorder_for", lambda device: recorder)
    return recorder


def adamw(model, lr):
    return torch.optim.AdamW(model.parameters(), lr=lr, fused=True)  # its counters are not read on the host


def training(task, engine, *, schedule=None, device=CPU, **options):
    """A model, its optimiser, and a function that trains on a batch and steps the schedule."""
    seed_everything(0)
    model = make_model(task, device, engine)
    optimizer = task.optimizer(model, 0.05)
    scheduler = schedule(optimizer) if schedule else None
    step = make_step(task, model, optimizer, engine=engine, **options)

    def once(batch):
        step(batch)
        if scheduler is not None:
            scheduler.step()

    return model, optimizer, step, once


def assert_trains_alike(task, batches, schedule=None, device=CPU, rtol=1e-5, **options):
    """Weights, buffers and optimiser state after every batch, eager against replayed. Returns the graphed step."""
    eager, its_optimizer, _, eagerly = training(task, Engine(), schedule=schedule, device=device, **options)
    model, optimizer, step, once = training(task, GRAPHED, schedule=schedule, device=device, batch_size=8, **options)
    for batch in batches:
        eagerly(batch)
        once(batch)
        for (name, got), expected in zip(model.state_dict().items(), eager.state_dict().values(), strict=True):
            torch.testing.assert_close(
                got, expected, rtol=rtol, atol=rtol / 100, msg=lambda text, n=name: f"{n}: {text}"
            )
    assert [g["lr"] for g in optimizer.param_groups] == [g["lr"] for g in its_optimizer.param_groups]
    for got, expected in zip(optimizer.state.values(), its_optimizer.state.values(), strict=True):
        for key, value in expected.items():
            torch.testing.assert_close(got[key], value, rtol=rtol, atol=rtol / 100, check_device=False)
    return step


def epochs(count, full=4, ragged=3):
    """Batches of 8, and a short one at the end of each epoch."""
    return [examples(size, 10 * e + i) for e in range(count) for i, size in enumerate([8] * full + [ragged])]


# --- replays train as eager steps do ---


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


class Stopped(BaseException):
    """What a kill does."""


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


# --- falling back ---


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


# --- on a GPU ---

gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),
]


def on_gpu(test):
    for mark in gpu:
        test = mark(test)
    return test


def adamw_on_gpu(model, lr):
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1)


def sent(batches):
    return [tuple(t.cuda() for t in batch) for batch in batches]


@on_gpu
@pytest.mark.parametrize("optimizer", [sgd, adamw_on_gpu])
@pytest.mark.parametrize("annealed", [False, True])
@pytest.mark.parametrize("micro", [None, 3])
def test_replays_equal_eager_steps_on_the_gpu(optimizer, annealed, micro):
    schedule = (lambda o: CosineAnnealingLR(o, 20)) if annealed else None
    task = toy(optimizer=optimizer, clip_norm=0.3, model=lambda: nn.Sequential(mlp(), nn.BatchNorm1d(3)))
    batches = sent(epochs(3, ragged=5))  # in micro-batches of 3 and 2: batch norm needs two examples
    step = assert_trains_alike(task, batches, schedule, torch.device("cuda"), rtol=1e-3, micro_batch_size=micro)
    assert (step.reason, step.replays) == ("", 3 * 4 - WARM_UP)


@on_gpu
def test_bf16_is_replayed_on_the_gpu():
    step = assert_trains_alike(toy(), sent(epochs(3)), None, torch.device("cuda"), rtol=1e-2, precision="bf16")
    assert (step.reason, step.replays) == ("", 9)


@on_gpu
def test_dropout_draws_anew_at_every_replay_on_the_gpu():
    task = toy(model=mlp_with_state, optimizer=lambda model, lr: torch.optim.SGD(model.parameters(), lr=0.0))
    masks = []

    def kept(model, batch):
        out = model(batch[0])
        masks.append(out)
        return F.cross_entropy(out, batch[1])

    *_, step, once = training(
        toy(**vars(task) | {"step": kept, "loss": None, "metrics": {}}), GRAPHED, device=torch.device("cuda")
    )
    (batch,) = sent([examples(8)])
    for _ in range(WARM_UP + 1):
        once(batch)
    first = masks[-1].detach().clone()
    once(batch)
    assert (step.reason, step.replays) == ("", 2)
    assert not torch.equal(masks[-1], first)


@on_gpu
def test_a_trial_with_every_switch_on_the_gpu(tmp_path):
    device, everything = torch.device("cuda"), Engine(channels_last=True, graphed=True, prefetched=True)
    task = toy(optimizer=adamw_on_gpu, schedule=CosineAnnealingLR, clip_norm=1.0)
    spec = trial(8, budget=4 * SIZE, cadence=20)
    plain = train(task, spec, device=device)
    other = train(task, spec, device=device, engine=everything)
    for a, b in zip(plain.trace, other.trace, strict=True):
        assert b.validation["loss"] == pytest.approx(a.validation["loss"], rel=1e-3)
    seen = []

    def stop(line):
        seen.append(line)
        if len(seen) == 6:
            raise Stopped

    checkpoint = Checkpoint(tmp_path / "a.pt", seconds=0)
    with pytest.raises(Stopped):
        train(task, spec, device=device, engine=everything, checkpoint=checkpoint, on_evaluation=stop)
    resumed = train(task, spec, device=device, engine=everything, checkpoint=checkpoint)
    for a, b in zip(other.trace, resumed.trace, strict=True):
        assert b.validation["loss"] == pytest.approx(a.validation["loss"], rel=1e-3)


@on_gpu
@pytest.mark.parametrize("seen", [True, False])
def test_a_failed_capture_leaves_the_gpu_usable(seen, monkeypatch):
    """A step that synchronises: found out before, or else at the capture; dropout goes on drawing afterwards."""
    if not seen:
        run = graphs.CudaRecorder.run
        monkeypatch.setattr(graphs.CudaRecorder, "waits", lambda self, function: run(self, function) or False)

    def reads(model, batch):
        loss = F.cross_entropy(model(batch[0]), batch[1])
        return loss if loss.item() > 0 else loss * 2

    task = toy(model=mlp_with_state, loss=None, metrics={}, step=reads)
    model, _, step, once = training(task, GRAPHED, device=torch.device("cuda"))
    before = torch.cuda.current_stream()
    for batch in sent(epochs(3, ragged=4)):
        once(batch)
    assert step.reason != ""
    assert step.replays == 0
    assert torch.cuda.current_stream() == before
    torch.cuda.synchronize()
    assert all(p.isfinite().all() for p in model.parameters())
    torch.rand(3, device="cuda")
