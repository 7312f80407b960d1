"""Is the digits task what it says: fixed split, no example twice, a goal that its own point reaches in its budget?"""

import sys

import pytest
import torch

from batchscope.errors import TaskError
from batchscope.tasks import digits


def test_the_split_is_fixed_and_uses_every_image_once():
    task, again = digits.task(), digits.task()
    assert task.test is not None
    assert [len(part[0]) for part in (task.train, task.valid, task.test)] == [1024, 512, 261]
    assert torch.equal(task.train[0], again.train[0])
    images, labels = digits.load()
    split = torch.cat([task.train[0], task.valid[0], task.test[0]])
    assert torch.equal(split.sum(0), images.sum(0))
    assert torch.equal(torch.cat([p[1] for p in (task.train, task.valid, task.test)]).bincount(), labels.bincount())
    assert (images.min(), images.max()) == (0, 1)


def test_plain_sgd_reaches_the_goal_within_a_third_of_the_budget():
    task = digits.task()
    torch.manual_seed(0)
    model = task.model()
    optimizer = task.optimizer(model, task.lr)
    (x, y), losses = task.train, []
    assert task.goal is not None
    for _ in range(task.budget_examples // len(x) // 3):
        for rows in torch.randperm(len(x)).split(task.batch_size):
            optimizer.zero_grad()
            task.batch_loss(model, (x[rows], y[rows])).backward()
            optimizer.step()
        with torch.no_grad():
            losses.append(float(task.batch_loss(model, task.valid)))
    assert any(task.goal.met(value) for value in losses)
    assert not task.goal.met(losses[0])


def test_without_scikit_learn_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(TaskError, match=r"pip install 'scikit-learn>=1\.7'") as caught:
        digits.task()
    assert "\n" not in str(caught.value)
