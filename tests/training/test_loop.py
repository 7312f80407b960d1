"""The loop is held to a hand-written one, bit for bit, and each of its endings is provoked."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from batchscope.analysis.target import crossed
from batchscope.errors import StoreError
from batchscope.records import Engine, Evaluation, Goal, StopRule
from batchscope.training import loop
from batchscope.training.loop import Evaluator, ending, norm_of_difference, steps_within, train
from batchscope.training.seeding import permutation
from toys import CPU, SIZE, Augmented, accuracy, examples, mlp, mlp_with_state, sgd, toy, trial


def watched(task, **changes):
    """The task, and a list that collects its models."""
    models = []

    def model():
        models.append(task.model())
        return models[-1]

    return toy(**vars(task) | {"model": model} | changes), models


def by_hand(task, batch_size, seed, budget, cadence, schedule=None, clip=None):
    """The twin: weights, and (step, examples, train loss, validation loss, accuracy, distance, update)s."""
    (x, y), (xv, yv) = task.train, task.valid
    subset = permutation(0, -1, len(x))[: len(xv)].sort().values
    torch.manual_seed(seed)
    model = task.model()
    optimizer = task.optimizer(model, 0.05)
    scheduler = schedule(optimizer) if schedule else None

    def flat():
        return torch.cat([p.detach().double().flatten() for p in model.parameters()])

    start, lines, done, step, epoch, due = flat(), [], 0, 0, 0, 0

    def look(before):
        model.eval()
        with torch.no_grad():
            train_loss, out = F.cross_entropy(model(x[subset]), y[subset]).item(), model(xv)
            update = (flat() - before).norm().item()
            valid = F.cross_entropy(out, yv).item(), accuracy(out, yv).item()
        model.train()
        lines.append((step, done, train_loss, *valid, (flat() - start).norm().item(), update))

    look(torch.full_like(start, math.nan))
    while done < budget:
        order = permutation(seed, epoch, len(x))
        for i in range(0, len(x), batch_size):
            chosen, before = order[i : i + batch_size], flat()
            optimizer.zero_grad()
            F.cross_entropy(model(x[chosen]), y[chosen]).backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            if scheduler:
                scheduler.step()
            done, step = done + len(chosen), step + 1
            if done // cadence > due or done >= budget:
                due = done // cadence
                look(before)
            if done >= budget:
                return flat(), lines
        epoch += 1


@pytest.mark.parametrize(
    ("batch_size", "clip", "annealed"), [(8, None, False), (1, 0.5, True), (SIZE, None, True), (7, 0.1, False)]
)
def test_equals_a_hand_written_loop_bit_for_bit(batch_size, clip, annealed):
    """Ragged last batches (of 4 and 6), momentum, dropout, batch norm where it can train, clipping, a schedule."""
    make = mlp if batch_size == 1 else mlp_with_state
    horizon = steps_within(100, SIZE, batch_size)
    changes = {"schedule": lambda o, n: CosineAnnealingLR(o, n)} if annealed else {}
    task, models = watched(toy(model=make, clip_norm=clip, **changes))
    result = train(task, trial(batch_size, seed=3, budget=100), device=CPU)
    schedule = (lambda o: CosineAnnealingLR(o, horizon)) if annealed else None
    weights, lines = by_hand(toy(model=make), batch_size, 3, 100, 20, schedule, clip)
    assert torch.equal(torch.cat([p.detach().double().flatten() for p in models[0].parameters()]), weights)
    assert result.ended_by == "budget"
    assert result.steps == lines[-1][0]
    assert len(result.trace) == len(lines)
    for line, (step, done, train_loss, valid_loss, valid_accuracy, distance, update) in zip(
        result.trace, lines, strict=True
    ):
        assert (line.step, line.examples) == (step, done)
        assert (line.train["loss"], line.validation["loss"]) == (train_loss, valid_loss)
        assert line.validation["accuracy"] == pytest.approx(valid_accuracy, rel=1e-6)
        assert line.distance == pytest.approx(distance, rel=1e-6, abs=1e-12)
        assert line.update_norm == pytest.approx(update, rel=1e-5, nan_ok=True)


def test_the_horizon_is_the_number_of_steps_taken():
    """Short last batches make an epoch ceil(N / B) steps: a schedule that is exhausted too early would raise."""
    for batch_size in (1, 7, 8, 45, 46):
        for budget in (1, 45, 46, 47, 120):
            steps, done = 0, 0
            while done < budget:
                for i in range(0, SIZE, batch_size):
                    steps, done = steps + 1, done + min(batch_size, SIZE - i)
                    if done >= budget:
                        break
            assert steps_within(budget, SIZE, batch_size) == steps
    horizons = []

    def one_cycle(optimizer, steps):
        horizons.append(steps)
        return OneCycleLR(optimizer, optimizer.param_groups[0]["lr"], total_steps=steps)

    result = train(toy(schedule=one_cycle), trial(8, budget=120), device=CPU)
    assert (result.ended_by, result.steps, horizons) == ("budget", 16, [16])


def test_evaluations_sit_on_one_grid_of_examples():
    """At the first step boundary at or past each multiple: the grid itself where B divides the cadence and the data."""
    task = toy(train=examples(48))
    traces = {b: train(task, trial(b, budget=96, cadence=16), device=CPU).trace for b in (1, 2, 4, 8, 16)}
    assert {b: [line.examples for line in t] for b, t in traces.items()} == {
        b: [0, 16, 32, 48, 64, 80, 96] for b in traces
    }
    coarse = train(task, trial(20, budget=96, cadence=16), device=CPU).trace
    assert [line.examples for line in coarse] == [0, 20, 40, 48, 68, 88, 96]  # 48: the short last batch ends on it
    assert [line.examples for line in train(task, trial(48, budget=96, cadence=5), device=CPU).trace] == [0, 48, 96]


def test_one_seed_gives_one_start_and_one_order_at_every_batch_size():
    """The labels that training sees, in order: the loss hears of them where it carries gradient."""
    starts, orders = [], []
    for batch_size in (1, 5, SIZE):
        seen = []

        def loss(output, target, seen=seen):
            seen.extend(target.tolist() if output.requires_grad else [])
            return F.cross_entropy(output, target)

        task = toy(loss=loss)
        result = train(task, trial(batch_size, budget=2 * SIZE, cadence=1000), device=CPU)
        starts.append((result.trace[0].train, result.trace[0].validation, result.initial_norm))
        orders.append(seen)
    assert starts[0] == starts[1] == starts[2]
    assert orders[0] == orders[1] == orders[2]
    assert orders[0] == task.train[1][torch.cat([permutation(0, e, SIZE) for e in (0, 1)])].tolist()


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not():
    task = toy(model=mlp_with_state, train=Augmented())
    results = [train(task, trial(8, seed=s), device=CPU) for s in (5, 5, 6)]
    assert results[0].trace[1:] == results[1].trace[1:]
    assert results[0].trace[1:] != results[2].trace[1:]


@pytest.mark.parametrize("data", [examples(SIZE), Augmented()])
def test_switches_that_need_cuda_change_no_bit_on_the_cpu(data):
    task = toy(model=mlp_with_state, train=data, clip_norm=1.0)
    plain, switched = (
        train(task, trial(8, micro=3), device=CPU, engine=e) for e in (Engine(), Engine(graphed=True, prefetched=True))
    )
    assert plain.trace[1:] == switched.trace[1:]
    assert plain.outcome == switched.outcome


def test_the_engine_reaches_model_data_and_step(monkeypatch):
    """And the step hears how large a full batch is, which is never larger than the data set."""
    heard = {}

    def listening(name, function):
        def call(*args, **options):
            heard[name] = options.get("engine", args[-1]), options.get("batch_size")
            return function(*args, **options)

        return call

    for name in ("make_model", "make_source", "make_step"):
        monkeypatch.setattr(loop, name, listening(name, getattr(loop, name)))
    engine = Engine(prefetched=True)
    for batch_size in (8, 2 * SIZE):
        train(toy(), trial(batch_size), device=CPU, engine=engine)
        full = min(batch_size, SIZE)
        assert heard == {"make_model": (engine, None), "make_source": (engine, None), "make_step": (engine, full)}


def test_evaluating_leaves_no_mark_on_training():
    """Four times as many evaluations of a loss that draws at random, and the training is the same bits."""

    def noisy(model, batch):
        return F.cross_entropy(model(batch[0] + 0.1 * torch.randn_like(batch[0])), batch[1])

    task, models = watched(toy(model=mlp_with_state, step=noisy, loss=None, metrics={}))
    often, seldom = (train(task, trial(8, cadence=c), device=CPU) for c in (10, 40))
    assert norm_of_difference(list(models[0].parameters()), list(models[1].parameters())) == 0
    assert len(often.trace) > len(seldom.trace)
    assert often.trace[-1].validation == seldom.trace[-1].validation  # the same noise at every evaluation


def test_bf16_trains_in_bf16():
    kinds = set()

    def loss(output, target):
        kinds.add(output.dtype)
        return F.cross_entropy(output.float(), target)

    task, models = watched(toy(loss=loss, precision="bf16"))
    result = train(task, trial(8, precision="bf16"), device=CPU)
    assert kinds == {torch.bfloat16}
    assert {p.dtype for p in models[0].parameters()} == {torch.float32}
    assert result.trace[-1].validation["loss"] < result.trace[0].validation["loss"]


def line(examples_seen, valid, train_loss=None):
    """One line of a made-up trace."""
    losses = {"loss": valid if train_loss is None else train_loss}, {"loss": valid}
    return Evaluation(examples_seen, examples_seen, *losses, 0.0, 0.0)


@pytest.mark.parametrize(
    ("losses", "stop", "ended_by"),
    [
        ([1.0, math.nan], {}, "divergence"),
        ([1.0, math.inf], {"patience_epochs": 0.1}, "divergence"),
        ([1.0, 11, 11], {}, None),
        ([1.0, 11, 11, 11], {}, "divergence"),
        ([1.0, 11, 9, 11], {}, None),
        ([1.0, 0.2, 0.2], {"goal": Goal("loss", at_most=0.3)}, None),
        ([1.0, 0.2, 0.2, 0.2], {"goal": Goal("loss", at_most=0.3)}, "goal"),
        ([1.0, 0.5, 0.5, 0.6], {"patience_epochs": 2.0}, "patience"),  # equal is no improvement
        ([1.0, 0.5, 0.5, 0.4999999], {"patience_epochs": 2.0}, None),  # any decrease is
        ([1.0, 0.5, 0.4, 0.3, 0.2], {}, "budget"),
        ([1.0, 0.5, 0.4, 0.3, 0.2], {"cap_examples": 40}, "budget"),
        ([1.0, 0.5, 0.4], {"cap_examples": 25}, None),
        ([1.0, 0.5, 0.4, 0.3], {"cap_examples": 25}, "cap"),
    ],
)
def test_endings(losses, stop, ended_by):
    """An epoch is 10 examples and an evaluation each; the budget is 40."""
    trace = [line(10 * k, loss) for k, loss in enumerate(losses)]
    assert ending(trace, StopRule(40, 10, **stop), 10, crossed) == ended_by


def test_trials_end_as_their_rule_says():
    goal = Goal("accuracy", at_least=0.7)
    easy = train(toy(), trial(4, budget=100 * SIZE, goal=goal), device=CPU, crossed=crossed)
    assert (easy.outcome, easy.ended_by) == ("reached", "goal")
    assert [goal.met(e.validation["accuracy"]) for e in easy.trace[-4:]] == [False, True, True, True]
    on = train(toy(), trial(4, budget=easy.examples + 30), device=CPU, crossed=crossed, goal=goal)
    assert (on.outcome, on.ended_by) == ("reached", "budget")
    assert on.trace[1 : len(easy.trace)] == easy.trace[1:]
    capped = train(toy(), trial(4, budget=10 * SIZE, cap_examples=50), device=CPU, crossed=crossed, goal=goal)
    assert (capped.ended_by, capped.examples) == ("cap", 50)  # 46 + 4: the first step that ends at 50 examples or past
    patient = train(toy(lr=2.0), trial(4, lr=2.0, budget=100 * SIZE, patience_epochs=2.0), device=CPU)
    best = min(patient.trace, key=lambda e: e.validation["loss"])
    assert (patient.outcome, patient.ended_by) == ("not_reached", "patience")
    assert patient.trace[-2].examples - best.examples < 2 * SIZE <= patient.examples - best.examples


def test_diverged_is_an_outcome_and_a_goal_reached_before_stays_reached():
    wild = toy(model=lambda: nn.Linear(5, 3), loss=lambda output, target: (output.sum(1) - target).pow(2).mean())
    diverged = train(
        wild, trial(4, lr=50.0, budget=100 * SIZE), device=CPU, crossed=crossed, goal=Goal("loss", at_most=0.1)
    )
    assert (diverged.outcome, diverged.ended_by, diverged.reason) == ("diverged", "divergence", "")
    late = toy(schedule=lambda o, n: torch.optim.lr_scheduler.LambdaLR(o, lambda s: 1.0 if s < 40 else 1e30))
    goal = Goal("loss", at_most=0.9)
    result = train(late, trial(4, budget=100 * SIZE), device=CPU, crossed=crossed, goal=goal)
    assert (result.outcome, result.ended_by) == ("reached", "divergence")


def test_an_exception_of_the_users_is_the_outcome_failed_with_its_text():
    calls = []

    def fragile(output, target):
        calls.append(1)
        if len(calls) > 9:
            raise ValueError("the tenth loss\nis too many")
        return F.cross_entropy(output, target)

    result = train(toy(loss=fragile), trial(8), device=CPU)
    assert (result.outcome, result.ended_by, result.reason) == ("failed", "failure", "ValueError: the tenth loss")
    assert result.steps > 0
    assert len(result.trace) >= 1

    def hungry(output, target):
        raise RuntimeError("CUDA error: out of memory")

    assert train(toy(loss=hungry), trial(8), device=CPU).reason == "out of memory"

    def full(model, lr):
        raise StoreError("the disk is full")

    with pytest.raises(StoreError):  # ours: not the user's fault
        train(toy(optimizer=full), trial(8), device=CPU)


def test_test_metrics_come_from_the_best_validation_weights():
    """The twin keeps the weights after every step and evaluates the best ones itself."""
    test = examples(30, seed=2)
    task, models = watched(toy(lr=0.5, test=test))
    states = []
    result = train(
        task,
        trial(4, lr=0.5, budget=8 * SIZE, cadence=16),
        device=CPU,
        on_evaluation=lambda _: states.append({k: v.clone() for k, v in models[-1].state_dict().items()}),
    )
    losses = [e.validation["loss"] for e in result.trace]
    best = losses.index(min(losses))
    assert 0 < best < len(losses) - 1
    model = mlp()
    model.load_state_dict(states[best])
    with torch.no_grad():
        assert result.test == {
            "loss": F.cross_entropy(model(test[0]), test[1]).item(),
            "accuracy": accuracy(model(test[0]), test[1]).item(),
        }
    assert train(toy(), trial(8), device=CPU).test is None


def test_frozen_layers_and_unused_parameters_train_and_count_only_what_trains():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head, self.unused = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(4, 4)
            self.body.requires_grad_(False)

        def forward(self, x):
            return self.head(self.body(x).tanh())

    task, models = watched(toy(model=Net, optimizer=lambda model, lr: torch.optim.Adam(model.parameters(), lr=lr)))
    result = train(task, trial(8, lr=0.01), device=CPU)
    torch.manual_seed(0)
    start, end = Net(), models[0]
    moved = [a - b for a, b in zip(end.head.parameters(), start.head.parameters(), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(end.body.parameters(), start.body.parameters(), strict=True))
    assert result.trace[-1].distance == pytest.approx(norm_of_difference(moved, None), rel=1e-6)
    assert result.initial_norm == pytest.approx(
        norm_of_difference([*start.head.parameters(), *start.unused.parameters()], None)
    )


def test_an_evaluator_serves_many_trials():
    evaluator = Evaluator(toy(model=mlp_with_state), CPU)
    task = toy(model=mlp_with_state)
    assert evaluator.train.size == evaluator.valid.size == 20
    alone = train(task, trial(8), device=CPU)
    shared = [train(task, trial(8), device=CPU, evaluator=evaluator) for _ in range(2)]
    assert alone.trace[1:] == shared[0].trace[1:] == shared[1].trace[1:]


def test_param_groups_keep_their_own_learning_rates():
    def groups(model, lr):
        return torch.optim.SGD([{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters()}], lr=lr)

    task, models = watched(toy(optimizer=groups))
    train(task, trial(8), device=CPU)
    torch.manual_seed(0)
    start = mlp()
    assert torch.equal(models[0][0].weight, start[0].weight)
    assert not torch.equal(models[0][2].weight, start[2].weight)
    assert sgd(start, 0.1).param_groups[0]["lr"] == 0.1
