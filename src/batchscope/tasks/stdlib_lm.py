"""What does batch size do to a small language model? Characters of Python's own documentation, Adam, two layers.

The text comes with Python (`pydoc_data.topics`, about half a million characters of English) and differs a little
between Python versions. It is the task's training data, so its hash is part of the task's fingerprint: what was
measured under another Python is not taken for this.
"""

import torch
import torch.nn.functional as F
from torch import nn

from batchscope.errors import TaskError
from batchscope.task import Goal, Task

LENGTH = 64  # tokens (characters) of a sequence
WIDTH, HEADS, LAYERS = 64, 2, 2
TRAIN, VALID = 6144, 256  # sequences; 6144 = 3 x 2^11 is cut evenly by powers of two. The rest is the test set
SPLIT_SEED = 0


class Block(nn.Module):
    """One layer: causal attention, then a feed-forward network of four times the width, each on a normed input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.feed = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, width) -> (B, T, width)."""
        b, t, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(b, t, WIDTH))
        return x + self.feed(self.norm2(x))


class CharacterTransformer(nn.Module):
    """A decoder over `vocabulary` characters."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, vocabulary)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, T) int64 -> (B, T, vocabulary) scores of the next character."""
        x = self.token(tokens) + self.position[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats, the mean over all tokens: (B, T, V) scores, (B, T) characters."""
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def read_text() -> str:
    """The topics of Python's `help()`, in alphabetical order; TaskError where this Python came without them."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise TaskError(
            "task 'stdlib-lm' expected the module pydoc_data.topics of Python's standard library, and it cannot be "
            "imported: use a Python with its whole standard library (Debian: apt-get install libpython3-stdlib)"
        ) from error
    return "\n".join(topics[name] for name in sorted(topics))


def sequences(text: str) -> tuple[torch.Tensor, torch.Tensor, int]:
    """x and y, each (n, 64) int64, y the character after each of x; and the number of different characters."""
    alphabet = {character: i for i, character in enumerate(sorted(set(text)))}
    codes = torch.tensor([alphabet[character] for character in text])
    n = (len(codes) - 1) // LENGTH
    if n <= TRAIN + VALID:
        raise TaskError(
            f"task 'stdlib-lm' expected more than {(TRAIN + VALID) * LENGTH:,} characters of documentation, "
            f"got {len(text):,}: use a Python with its whole standard library"
        )
    return codes[: n * LENGTH].view(n, LENGTH), codes[1 : n * LENGTH + 1].view(n, LENGTH), len(alphabet)


def task() -> Task:
    """The task. Its own point needs 8,300 to 9,100 sequences (1.4 epochs; measured with Python 3.11, two seeds).

    The best of the few learning rates tried reached the goal after 5,200 sequences at batch size 8, 6,500 at 16 and
    10,700 at 64 (one seed each).
    """
    x, y, vocabulary = sequences(read_text())
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(SPLIT_SEED))
    train, valid, test = order.split([TRAIN, VALID, len(x) - TRAIN - VALID])
    return Task(
        name="stdlib-lm",
        model=lambda: CharacterTransformer(vocabulary),
        loss=loss,
        train=(x[train], y[train]),
        valid=(x[valid], y[valid]),
        test=(x[test], y[test]),
        optimizer=lambda model, lr: torch.optim.Adam(model.parameters(), lr=lr),
        lr=0.002,
        batch_size=16,
        goal=Goal("loss", at_most=2.2),
        budget=6 * TRAIN,
        unit="tokens",
    )
