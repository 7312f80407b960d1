"""Do replays of CUDA's own graphs train as eager steps do?"""

import pytest
import torch
import torch.nn.functional as F
from tapes import GRAPHED, Stopped, assert_trains_alike, epochs, training
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from batchscope.records import Engine
from batchscope.training import graphs
from batchscope.training.checkpoint import Checkpoint
from batchscope.training.graphs import WARM_UP
from batchscope.training.loop import train
from toys import SIZE, examples, mlp_with_state, sgd, toy, trial

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),
]


def adamw_on_gpu(model, lr):
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1)


def normed():
    """No bias before the batch norm: its gradient is rounding, of which Adam would make whole steps."""
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3, bias=False), nn.BatchNorm1d(3))


def sent(batches):
    return [tuple(t.cuda() for t in batch) for batch in batches]


@pytest.mark.parametrize("optimizer", [sgd, adamw_on_gpu])
@pytest.mark.parametrize("annealed", [False, True])
@pytest.mark.parametrize("micro", [None, 3])
def test_replays_equal_eager_steps_on_the_gpu(optimizer, annealed, micro):
    schedule = (lambda o: CosineAnnealingLR(o, 20)) if annealed else None
    task = toy(optimizer=optimizer, clip_norm=0.3, model=normed)
    batches = sent(epochs(3, ragged=5))  # in micro-batches of 3 and 2: batch norm needs two examples
    step = assert_trains_alike(task, batches, schedule, torch.device("cuda"), rtol=1e-3, micro_batch_size=micro)
    assert (step.reason, step.replays) == ("", 3 * 4 - WARM_UP)


def test_bf16_is_replayed_on_the_gpu():
    step = assert_trains_alike(toy(), sent(epochs(3)), None, torch.device("cuda"), rtol=1e-2, precision="bf16")
    assert (step.reason, step.replays) == ("", 9)


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
