"""From a checkpoint and a DataLoader alone: how many times larger could the batch be from here on?

python examples/12_branches.py
"""

import argparse
import inspect
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import batchscope as bs

LENGTH = 32  # characters in a sequence
BATCH_SIZE = 16  # sequences in a step today


class Characters(nn.Module):
    """A small causal language model: the next character from the last three."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(128, 32)
        self.mix = nn.Conv1d(32, 128, 3)

    def forward(self, characters: torch.Tensor) -> torch.Tensor:
        """(B, T) -> (B, 128, T) scores of the next characters."""
        x = nn.functional.pad(self.table(characters).transpose(1, 2), (2, 0))
        return self.mix(x)


def make_loader() -> DataLoader:
    """Sequences of the source text of a module of Python's."""
    text = [min(ord(c), 127) for c in inspect.getsource(argparse)]
    rows = torch.tensor(text[: len(text) // (LENGTH + 1) * (LENGTH + 1)]).view(-1, LENGTH + 1)
    return DataLoader(TensorDataset(rows[:, :-1], rows[:, 1:]), batch_size=BATCH_SIZE, shuffle=True)


def loss(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    """The mean over the characters of the batch."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def train(loader: DataLoader, path: Path) -> None:
    """Two epochs, and a checkpoint."""
    torch.manual_seed(0)
    model = Characters()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for batch in [*loader, *loader]:
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)


def main() -> bs.BranchAnswer:
    """Load the checkpoint, and ask."""
    loader = make_loader()
    with tempfile.TemporaryDirectory() as folder:
        train(loader, Path(folder) / "checkpoint.pt")
        saved = torch.load(Path(folder) / "checkpoint.pt")
    model = Characters()
    optimizer = torch.optim.AdamW(model.parameters())
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])

    answer = bs.branches(
        model,
        optimizer,
        loader,
        loss,
        batch_size=BATCH_SIZE,
        window=40_000,  # characters; in earnest: as many as the loss needs to settle at a new batch size
        unit="tokens",
        ks=(0.5, 1, 2, 4),
        micro_batch_size=64,  # what fits
    )
    print(answer)
    for p in answer.points:
        print(f"k = {p.k:g}, batch size {p.batch_size}, lr {p.learning_rate:.2g}: {p.recovered} ({p.reason})")
    print(answer.evidence, *answer.notes, sep="\n")
    return answer


if __name__ == "__main__":
    main()
