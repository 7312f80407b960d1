"""Is the character task what it says: next-character targets, causal, a mean over tokens, its text in its data?"""

import math
import sys
import types

import pytest
import torch

from batchscope.errors import TaskError
from batchscope.tasks import stdlib_lm


def test_targets_are_the_next_characters_and_the_text_can_be_read_back():
    text = stdlib_lm.read_text()
    x, y, vocabulary = stdlib_lm.sequences(text)
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert torch.equal(x[1:, 0], y[:-1, -1])
    alphabet = sorted(set(text))
    assert vocabulary == len(alphabet)
    assert "".join(alphabet[i] for i in x.flatten().tolist()) == text[: x.numel()]


def test_another_text_is_other_data(monkeypatch):
    here = stdlib_lm.task()
    changed = stdlib_lm.read_text().replace("the", "teh", 1)
    monkeypatch.setattr(stdlib_lm, "read_text", lambda: changed)
    there = stdlib_lm.task()
    assert not all(torch.equal(getattr(here, part)[0], getattr(there, part)[0]) for part in ("train", "valid", "test"))


def test_a_character_is_predicted_from_those_before_it_alone():
    torch.manual_seed(0)
    model = stdlib_lm.CharacterTransformer(50).eval()
    tokens = torch.randint(0, 50, (2, stdlib_lm.LENGTH))
    changed = tokens.clone()
    changed[:, 40:] = (changed[:, 40:] + 1) % 50
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :40], after[:, :40])
    assert (before[:, 40:] - after[:, 40:]).abs().max() > 1e-3


def test_the_loss_is_the_mean_over_tokens_and_starts_near_a_blind_guess():
    task = stdlib_lm.task()
    torch.manual_seed(0)
    model = task.model()
    x, y = (part[:8] for part in task.train)
    loss = task.batch_loss(model, (x, y))
    each = torch.stack([task.batch_loss(model, (x[i : i + 1], y[i : i + 1])) for i in range(8)])
    torch.testing.assert_close(loss, each.mean())
    vocabulary = model(x).shape[-1]
    assert abs(float(loss.detach()) - math.log(vocabulary)) < 0.5


def test_a_few_steps_learn_the_letters_frequencies():
    task = stdlib_lm.task()
    torch.manual_seed(0)
    model = task.model()
    optimizer = task.optimizer(model, task.lr)
    x, y = task.train
    for rows in torch.randperm(len(x))[: 40 * task.batch_size].split(task.batch_size):
        optimizer.zero_grad()
        task.batch_loss(model, (x[rows], y[rows])).backward()
        optimizer.step()
    with torch.no_grad():
        loss = float(task.batch_loss(model, task.valid))
    assert task.goal is not None
    assert task.goal.value < loss < 3.2


def test_a_python_without_its_documentation_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(TaskError, match="whole standard library"):
        stdlib_lm.task()
    short = types.SimpleNamespace(topics={"a": "b"})
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", short)
    with pytest.raises(TaskError, match="got 1"):
        stdlib_lm.task()
