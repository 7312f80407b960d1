"""What a task file may say, what is refused before anything runs, and every way that a reference can lead nowhere."""

import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from batchscope.errors import TaskError, UnsupportedTask, UsageError
from batchscope.records import Goal
from batchscope.task import Task, data_size, load_task
from batchscope.tasks import BUILT_IN
from toys import SIZE, Augmented, examples, mlp, sgd, toy

X, Y = examples(SIZE)


class Endless(IterableDataset):
    def __iter__(self):
        return iter([(X[0], Y[0])])


class NoLength(Dataset):
    def __getitem__(self, index):
        return X[0], Y[0]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": ""}, r"expected a name, got ''"),
        ({"model": mlp()}, r"model to be a function that makes a fresh nn.Module"),
        ({"loss": None}, r"a loss function, got None: write loss=F.cross_entropy, or step="),
        ({"optimizer": sgd(mlp(), 0.1)}, r"optimizer to be a function of \(model, lr\)"),
        ({"lr": 0}, r"a positive learning rate, got 0"),
        ({"lr": float("nan")}, r"a positive learning rate, got nan"),
        ({"batch_size": 0}, r"a batch size of at least 1, got 0"),
        ({"batch_size": 2.5}, r"a batch size of at least 1, got 2.5"),
        ({"goal": 0.3}, r"goal to be a bs.Goal or None, got 0.3"),
        ({"goal": Goal("f1", at_least=0.3)}, r"goal's metric to be one of loss, accuracy, got 'f1'"),
        ({"metrics": {"loss": lambda o, y: 0}, "goal": None}, r"metrics under other names than 'loss'"),
        ({"metrics": {"accuracy": 0.9}}, r"metrics to be functions by name"),
        ({"precision": "fp16"}, r'precision "fp32" or "bf16", got \'fp16\''),
        ({"unit": "words"}, r'unit "examples" or "tokens", got \'words\''),
        ({"budget": 0}, r"budget to be a number of examples, got 0"),
        ({"clip_norm": -1.0}, r"a positive clip_norm, got -1.0"),
        ({"schedule": 3}, r"schedule to be a function or None, got 3"),
        ({"evaluate": "mean"}, r"evaluate to be a function or None, got 'mean'"),
        ({"train": (X, Y[:-1])}, r"train data: expected tensors of equal length, got \[46, 45\]"),
        (
            {"train": (np.zeros(3), np.zeros(3))},
            r"train data: expected tensors, got \(ndarray, ndarray\): write \(torch",
        ),
        ({"train": (torch.tensor(3.0),)}, r"expected tensors, got \(Tensor\)"),
        ({"train": ()}, r"expected tensors, got \(nothing\)"),
        ({"train": 5}, r"a tuple of tensors or a map-style Dataset, got int: write train="),
        ({"valid": None}, r"valid data: expected a tuple of tensors or a map-style Dataset, got NoneType"),
        ({"train": (X[:0], Y[:0])}, r"train data: expected at least 2 examples, got 0: check the path"),
        ({"train": (X[:1], Y[:1])}, r"train data: expected at least 2 examples, got 1"),
        ({"valid": (X[:0], Y[:0])}, r"valid data: expected at least 1 example, got 0"),
        ({"test": TensorDataset(X[:0], Y[:0])}, r"test data: expected at least 1 example, got 0"),
        ({"train": NoLength()}, r"train data: expected a Dataset with a length, got .*give it a __len__"),
    ],
)
def test_what_can_be_seen_without_running_anything_is_refused(changes, sentence):
    with pytest.raises(TaskError, match=sentence) as refused:
        toy(**changes)
    assert str(refused.value).startswith("task ")
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"train": Endless()},
        {"valid": DataLoader(TensorDataset(X, Y))},
        {"train": iter([(X, Y)])},
        {"optimizer": [sgd, sgd]},
    ],
)
def test_what_is_not_supported_is_refused_by_name(changes):
    with pytest.raises(UnsupportedTask, match=r"(train|valid) data is iterable \(\w+\)|several optimisers are not"):
        toy(**changes)


def test_defaults_and_sizes():
    task = toy(train=Augmented(), valid=[X, Y])
    assert (task.train_size, data_size(task.valid), task.budget_examples) == (SIZE, SIZE, 40 * SIZE)
    assert toy(budget=7).budget_examples == 7
    model = mlp()
    assert torch.equal(task.batch_loss(model, (X, Y)), torch.nn.functional.cross_entropy(model(X), Y))
    custom = toy(loss=None, step=lambda model, batch: model(batch[0]).mean(), metrics={})
    assert torch.equal(custom.batch_loss(model, (X, Y)), model(X).mean())
    with pytest.raises(TaskError, match="expected a loss function, got only step"):
        custom.loss_of(X, Y)


GOOD = """
import torch, toys, helper_beside
def task():
    return toys.toy(name=helper_beside.NAME)
def other():
    return toys.toy(name="other")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of task files that leaves sys.path and sys.modules as they were."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "helper_beside.py").write_text('NAME = "from the file"')
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith(("batchscope_task_", "helper_beside", "my_package")):
            del sys.modules[name]


def test_every_form_of_reference(folder, monkeypatch):
    assert load_task(str(folder / "good.py")).name == "from the file"
    assert load_task(f"{folder / 'good.py'}:other").name == "other"
    monkeypatch.chdir(folder)
    assert load_task("good.py").name == "from the file"
    assert load_task("./good.py:other").name == "other"
    package = folder / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "tasks.py").write_text(GOOD)
    assert load_task("my_package.tasks:other").name == "other"
    assert isinstance(load_task("noisy-quadratic"), Task)
    (folder / "good.py").write_text(GOOD.replace('"other"', '"changed"'))
    assert load_task("good.py:other").name == "changed"  # read again, not remembered


def test_a_task_files_classes_can_be_pickled_under_a_name_that_other_processes_share(folder):
    import hashlib
    import pickle

    (folder / "own.py").write_text(GOOD + "\nclass Mine: pass\ntoys.toy.mine = Mine\n")
    load_task(str(folder / "own.py"))
    from toys import toy as marked

    mine = marked.mine
    del marked.mine
    assert pickle.loads(pickle.dumps(mine)) is mine
    digest = hashlib.sha256(str((folder / "own.py").resolve()).encode()).hexdigest()[:8]
    assert mine.__module__ == f"batchscope_task_own_{digest}"


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("digitz", r"no task named 'digitz': expected a built-in one \(digits, .*\), path.py, path.py:function or"),
        ("missing.py", r"no file at missing.py: check the path"),
        ("missing.py:task", r"no file at missing.py: check the path"),
        ("good.py:nothing", r"good.py has no function 'nothing' \(it has other, task\): write good.py:function"),
        ("helper_beside.py", r"has no function 'task' \(it has no functions\)"),
        ("helper_beside.py:NAME", r"has no function 'NAME'"),
        ("no_such_module:task", r"no module named 'no_such_module' can be imported"),
        ("torch.nothing:task", r"no module named 'torch.nothing' can be imported"),
        ("json:nothing", r"json has no function 'nothing'"),
        (":task", r"no task named ':task'"),
        ("json:", r"no task named 'json:'"),
    ],
)
def test_a_reference_that_leads_nowhere(reference, sentence, folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(UsageError, match=sentence) as refused:
        load_task(reference)
    assert refused.value.exit_code == 2
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1 / 0", r"loading bad.py raised ZeroDivisionError: division by zero \(bad.py, line 1\): run it in Python"),
        ("def task(:\n", r"loading bad.py raised SyntaxError: .* \(bad.py, line 1\)"),
        ("import no_such_thing\ndef task(): pass", r"raised ModuleNotFoundError: .*no_such_thing.* \(bad.py, line 1\)"),
        ("import sys\nsys.exit(3)", r"raised SystemExit: 3 \(bad.py, line 2\)"),
        (
            "def task():\n    raise ValueError('mine\\ntoo')",
            r"its function raised ValueError: mine too \(bad.py, line 2\)",
        ),
        (
            "import torch\ndef task():\n    return torch.zeros(2) @ torch.zeros(3)",
            r"RuntimeError: .*\(bad.py, line 3\)",
        ),
        ("def task(path): pass", r"its function raised TypeError: task\(\) missing 1 required positional argument"),
        ("def task(): pass", r"its function to return a bs.Task, got NoneType: add 'return bs.Task"),
        ("import toys\ndef task(): return toys.toy", r"to return a bs.Task, got function"),
        ("import toys\ndef task(): return toys.toy(lr=-1)", r"task 'toy': expected a positive learning rate, got -1"),
    ],
)
@pytest.mark.parametrize("form", ["bad.py", "bad:task"])
def test_a_task_whose_own_code_fails(text, sentence, form, folder, monkeypatch):
    """By path and by module name; the original exception is chained."""
    (folder / "bad.py").write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    sys.modules.pop("bad", None)
    with pytest.raises(
        TaskError, match=sentence.replace("loading bad.py", "(loading bad.py|importing bad)")
    ) as refused:
        load_task(form)
    sys.modules.pop("bad", None)
    assert "\n" not in str(refused.value)
    assert refused.value.__cause__ is not None or "expected" in str(refused.value)


def test_ctrl_c_goes_through(folder):
    (folder / "bad.py").write_text("def task(): raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_task(str(folder / "bad.py"))


def test_built_in_names_lead_to_functions():
    assert all(place.startswith("batchscope.tasks.") and place.endswith(":task") for place in BUILT_IN.values())
