"""How is a step replayed where there is no CUDA? From a recording of its operations.

`Tape` behaves on the CPU as a CUDA graph does: Python runs once, while operations are recorded; numbers that it
takes along are fixed; what it reads from a tensor's memory on the host is refused; and a replay runs the operations
again on the same tensors. Capturing leaves no trace in any tensor.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from batchscope.records import Engine
from batchscope.training.batches import tensors_in
from batchscope.training.seeding import seed_everything
from batchscope.training.step import make_model, make_step
from toys import CPU, examples

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


class Stopped(BaseException):
    """What a kill does."""
