"""Does the loader find the files, refuse damaged ones in a sentence, and cut the same split every time?"""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from batchscope.errors import TaskError
from batchscope.tasks import fashion_mnist, fashion_mnist_cnn, fashion_mnist_mlp


def found() -> bool:
    """Whether the real files are on this machine."""
    try:
        fashion_mnist.find()
    except TaskError:
        return False
    return True


real = pytest.mark.skipif(not found(), reason="Fashion-MNIST is not on this machine")


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without the files: an empty home, cache, working folder and system folder."""
    monkeypatch.delenv(fashion_mnist.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "debian")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_files(folder: Path, pack: Callable[[bytes], bytes] = gzip.compress, suffix: str = ".gz") -> None:
    """Files under the right names with wrong bytes."""
    folder.mkdir(parents=True)
    for name in fashion_mnist.FILES:
        (folder / (name + suffix)).write_bytes(pack(b"not images"))


def test_where_nothing_is_found_the_sentence_names_every_place_and_the_command(nowhere):
    with pytest.raises(TaskError) as caught:
        fashion_mnist.load()
    text = str(caught.value)
    for place in ("cache/batchscope/fashion-mnist", "debian", "data/FashionMNIST/raw", "home/data/FashionMNIST/raw"):
        assert place in text
    assert fashion_mnist.INSTALL in text
    assert fashion_mnist.VARIABLE in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "place", ["cache/batchscope/fashion-mnist", "debian", "data/FashionMNIST/raw", "home/data/FashionMNIST/raw"]
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_each_place_is_found_packed_or_not(nowhere, place, suffix):
    write_files(nowhere / place, suffix=suffix)
    assert fashion_mnist.find().resolve() == nowhere / place


def test_a_folder_that_is_named_is_the_only_place_looked_at(nowhere, monkeypatch):
    write_files(nowhere / "debian")
    monkeypatch.setenv(fashion_mnist.VARIABLE, str(nowhere / "mine"))
    with pytest.raises(TaskError, match="mine") as caught:
        fashion_mnist.find()
    assert str(nowhere / "debian") not in str(caught.value)


def test_a_folder_with_only_some_of_the_files_is_passed_over(nowhere):
    write_files(nowhere / "cache/batchscope/fashion-mnist")
    (nowhere / "cache/batchscope/fashion-mnist/t10k-labels-idx1-ubyte.gz").unlink()
    write_files(nowhere / "debian")
    assert fashion_mnist.find() == nowhere / "debian"


@pytest.mark.parametrize(
    ("pack", "suffix", "says"),
    [
        (gzip.compress, ".gz", "SHA-256"),
        (lambda content: gzip.compress(content)[:-4], ".gz", "readable"),
        (lambda content: gzip.compress(content)[:12] + b"\xff" * 20, ".gz", "readable"),
        (lambda content: content, ".gz", "readable"),
        (lambda content: content, "", "SHA-256"),
        (lambda content: b"", "", "SHA-256"),
    ],
    ids=["other bytes", "truncated", "corrupt", "not gzip", "other bytes, unpacked", "empty"],
)
def test_a_damaged_file_is_refused_by_name(nowhere, monkeypatch, pack, suffix, says):
    write_files(nowhere / "mine", pack, suffix)
    monkeypatch.setenv(fashion_mnist.VARIABLE, str(nowhere / "mine"))
    with pytest.raises(TaskError, match=says) as caught:
        fashion_mnist.load()
    assert str(nowhere / "mine" / "train-images-idx3-ubyte") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def split() -> fashion_mnist.Split:
    """The real images, read once."""
    return fashion_mnist.load()


@real
def test_the_real_files_give_the_published_counts_and_the_stated_standardisation(split):
    assert [len(part[0]) for part in split] == [49_152, 10_848, 10_000]
    labels = torch.cat([split.train[1], split.valid[1]])
    assert labels.bincount().tolist() == [6000] * 10
    assert split.test[1].bincount().tolist() == [1000] * 10
    total = sum(part[0].double().sum() for part in (split.train, split.valid))
    squares = sum(part[0].double().square().sum() for part in (split.train, split.valid))
    mean = total / (60_000 * 784)
    assert abs(mean) < 1e-3
    assert abs(squares / (60_000 * 784) - mean**2 - 1) < 1e-3


@real
def test_training_and_validation_images_are_the_60000_each_once(split):
    images, *_ = fashion_mnist._arrays(fashion_mnist.find())
    pixels = torch.cat([split.train[0], split.valid[0]]) * fashion_mnist.SD + fashion_mnist.MEAN
    sums = (pixels * 255).round().long().sum((1, 2))
    assert torch.equal(sums.sort().values, torch.from_numpy(images.astype(np.int64).sum((1, 2))).sort().values)
    assert torch.equal(split.valid[1], fashion_mnist.load().valid[1])


@real
def test_the_two_tasks_fit_their_data():
    for make, parameters in ((fashion_mnist_mlp.task, 101_770), (fashion_mnist_cnn.task, 9_098)):
        task = make()
        model = task.model()
        assert sum(p.numel() for p in model.parameters()) == parameters
        output = model(task.train[0][:5])
        assert output.shape == (5, 10)
        assert 2.0 < float(F.cross_entropy(output, task.train[1][:5]).detach()) < 3.0
        assert task.train_size % task.batch_size == 0
        assert 0 <= float(task.metrics["accuracy"](output, task.train[1][:5])) <= 1


@real
def test_one_epoch_of_plain_sgd_brings_the_mlp_most_of_the_way():
    task = fashion_mnist_mlp.task()
    torch.manual_seed(0)
    model = task.model()
    optimizer = task.optimizer(model, task.lr)
    x, y = task.train
    for rows in torch.randperm(len(x)).split(task.batch_size):
        optimizer.zero_grad()
        task.batch_loss(model, (x[rows], y[rows])).backward()
        optimizer.step()
    with torch.no_grad():
        loss = float(task.batch_loss(model, task.valid))
    assert task.goal is not None
    assert task.goal.value < loss < 0.6
