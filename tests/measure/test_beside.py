"""Is the noise scale beside a trial that of its gradients, and the trial the same without it?"""

from __future__ import annotations

import dataclasses

import torch

from batchscope.measure.beside import NoiseBeside
from batchscope.records import Arm, StopRule, TrialSpec
from batchscope.tasks.noisy_quadratic import task
from batchscope.testing.examples import bits
from batchscope.training.loop import train

CPU = torch.device("cpu")
SPEC = TrialSpec(Arm(32, 0.2), 0, StopRule(12_800, 4096))


def test_the_trial_is_the_same_bits_and_the_scale_is_near_the_exact_one() -> None:
    quadratic = task()
    beside = NoiseBeside(quadratic, SPEC)
    watched = train(quadratic, SPEC, device=CPU, watch=beside)
    plain = train(quadratic, SPEC, device=CPU)
    assert bits(dataclasses.replace(watched, seconds=0.0)) == bits(dataclasses.replace(plain, seconds=0.0))
    scale = beside.scale()
    assert scale is not None
    assert scale.low is not None
    assert scale.low > 0


def test_nothing_measured_is_none() -> None:
    assert NoiseBeside(task(), SPEC).scale() is None
