"""Each switch changes how a step is computed, never what; and a switch is on only where measured seconds say so."""

import itertools

import pytest
import torch
from torch import nn

from batchscope.records import Arm, Engine, StopRule, TrialSpec
from batchscope.training import engine as module
from batchscope.training.engine import PLAIN, available, choose, compile_pays_back, has_compiler, one_more
from batchscope.training.loop import train
from batchscope.training.seeding import seed_everything
from batchscope.training.step import make_model, make_step
from toys import CPU, examples, mlp, toy

SWITCHES = ("channels_last", "compiled", "graphed", "prefetched")


def convolutional():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3), nn.Flatten(),
        nn.Linear(16, 3),
    )  # fmt: skip


def images(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, 8, 8, generator=generator), torch.randint(3, (size,), generator=generator)


def weights_after(task, batches, engine, **options):
    """All weights and buffers after a step on each batch, by name, in double precision."""
    seed_everything(0)
    model = make_model(task, CPU, engine)
    step = make_step(task, model, task.optimizer(model, 0.05), engine=engine, **options)
    for batch in batches:
        step(batch)
    return {name: value.detach().double() for name, value in model.state_dict().items()}


def assert_equal_results(got, expected):
    assert list(got) == list(expected)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-6)


# --- equal results ---


@pytest.mark.parametrize("micro", [None, 3])
def test_channels_last_gives_the_same_weights(micro):
    task, engine = toy(model=convolutional, train=images(8), valid=images(4)), Engine(channels_last=True)
    batches = [images(8, seed) for seed in range(3)] + [images(5, 3)]
    expected = weights_after(task, batches, PLAIN, micro_batch_size=micro)
    assert_equal_results(weights_after(task, batches, engine, micro_batch_size=micro), expected)


def test_channels_last_reaches_weights_inputs_and_activations():
    seen = []

    def watched():
        model = convolutional()
        model[1].register_forward_hook(lambda m, x, output: seen.append(output))
        model.register_forward_pre_hook(lambda m, x: seen.append(x[0]))
        return model

    task = toy(model=watched, train=images(8), valid=images(4), metrics={})
    model = make_model(task, CPU, Engine(channels_last=True))
    parameters = list(model.parameters())
    step = make_step(task, model, task.optimizer(model, 0.1), engine=Engine(channels_last=True))
    step(images(8))
    assert all(t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous() for t in seen)
    assert len(seen) == 2
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert parameters == list(model.parameters())  # the same objects


def test_a_trial_with_channels_last_has_the_same_trace():
    task = toy(model=convolutional, train=images(46), valid=images(20), metrics={})
    spec = TrialSpec(Arm(8, 0.05), 0, StopRule(100, 40))
    plain, other = train(task, spec, device=CPU), train(task, spec, device=CPU, engine=Engine(channels_last=True))
    for a, b in zip(plain.trace, other.trace, strict=True):
        assert b.validation["loss"] == pytest.approx(a.validation["loss"], rel=1e-4)


@pytest.mark.skipif(not has_compiler(CPU), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler imports what torch deprecates
def test_compiled_gives_the_same_weights_dropout_included():
    """A model of torch's own containers only, which `nn.Module.compile` would leave as it is."""
    from torch._dynamo.utils import counters

    task = toy(model=lambda: nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.3)))
    batches = [examples(8, seed) for seed in range(3)]
    counters.clear()
    got = weights_after(task, batches, Engine(compiled=True))
    assert counters["stats"]["unique_graphs"] == 1
    assert_equal_results(got, weights_after(task, batches, PLAIN))


def test_the_plain_engine_is_the_tasks_own_functions():
    """Nothing is wrapped where nothing is on: the hot path stays as it is."""
    task = toy()
    model = make_model(task, CPU)
    step = make_step(task, model, task.optimizer(model, 0.1))
    cells = {name: cell.cell_contents for name, cell in zip(step.__code__.co_freevars, step.__closure__, strict=True)}
    assert cells["loss_of"] == task.batch_loss


# --- which are worth timing ---


def test_available_are_switches_that_can_make_a_difference(monkeypatch):
    assert available(mlp(), CPU) == Engine(compiled=has_compiler(CPU))
    assert available(nn.Sequential(nn.Sequential(nn.Conv2d(1, 1, 3))), CPU).channels_last
    assert available(nn.ConvTranspose2d(1, 1, 3), CPU).channels_last
    assert not available(nn.Conv1d(1, 1, 3), CPU).channels_last
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: name == "triton" or None)
    assert available(mlp(), cuda) == Engine(compiled=True, graphed=True, prefetched=True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert available(mlp(), cuda) == Engine(graphed=True, prefetched=True)


def test_a_compiler_is_a_program_that_is_there(monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    assert not has_compiler(CPU)
    monkeypatch.setenv("CXX", "/opt/my-compiler -O2")
    monkeypatch.setattr(module.shutil, "which", lambda name: name if name == "/opt/my-compiler" else None)
    assert has_compiler(CPU)
    monkeypatch.setattr(module.sysconfig, "get_paths", lambda: {"include": "/nowhere"})
    assert not has_compiler(CPU)


def test_one_more_switch():
    possible = Engine(channels_last=True, graphed=True)
    assert one_more(PLAIN, possible) == [Engine(channels_last=True), Engine(graphed=True)]
    assert one_more(Engine(graphed=True), possible) == [possible]
    assert one_more(possible, possible) == []


# --- which are worth having ---

CHANNELS, GRAPHED, BOTH = Engine(channels_last=True), Engine(graphed=True), Engine(channels_last=True, graphed=True)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({PLAIN: [1.0, 1.0]}, PLAIN),
        ({PLAIN: [1.0, 1.0], CHANNELS: [0.96, 0.96]}, PLAIN),  # 4 % faster
        ({PLAIN: [1.0, 1.0], CHANNELS: [0.94, 0.94]}, CHANNELS),
        ({PLAIN: [1.0, 1.0], CHANNELS: [0.5, 1.04]}, CHANNELS),  # slower at one size, by less than 5 %
        ({PLAIN: [1.0, 1.0], CHANNELS: [0.1, 1.06]}, PLAIN),  # by more
        ({PLAIN: [1.0, 10.0], CHANNELS: [0.9, 9.9]}, CHANNELS),  # geometric: 5.6 %; of the sums 1.8 %
        ({PLAIN: [1.0], CHANNELS: [0.9], GRAPHED: [0.8]}, GRAPHED),
        ({PLAIN: [1.0], CHANNELS: [0.9], GRAPHED: [0.8], BOTH: [0.7]}, BOTH),
        ({PLAIN: [1.0], CHANNELS: [0.9], GRAPHED: [0.8], BOTH: [0.78]}, GRAPHED),  # no gain on top of it
        ({PLAIN: [1.0], BOTH: [0.1]}, PLAIN),  # neither switch was timed by itself
    ],
)
def test_a_switch_is_on_where_it_pays(seconds, expected):
    assert choose(seconds) == expected


def test_a_choice_needs_every_engine_at_every_size():
    for seconds in ({CHANNELS: [1.0]}, {PLAIN: [1.0], CHANNELS: [1.0, 2.0]}):
        with pytest.raises(ValueError, match="time every engine at every size"):
            choose(seconds)


def test_choosing_finds_the_best_of_all_where_switches_do_not_depend_on_each_other():
    """Against trying all 16: with independent factors, what helps by more than 5 % is on."""
    factors = dict(zip(SWITCHES, (0.7, 1.3, 0.9, 0.98), strict=True))
    seconds = {}
    for on in itertools.product((False, True), repeat=4):
        time = 1.0
        for switch, state in zip(SWITCHES, on, strict=True):
            time *= factors[switch] if state else 1.0
        seconds[Engine(*on)] = [time, 2 * time]
    assert choose(seconds) == Engine(channels_last=True, graphed=True)


def test_compiling_pays_back_within_the_trial():
    assert compile_pays_back(100, 2.0, 20, 2)  # 50 s saved, 40 spent
    assert not compile_pays_back(100, 2.0, 20, 3)
    assert not compile_pays_back(100, 1.0, 0.0, 1)
    assert not compile_pays_back(1e9, 0.9, 0.001, 1)
