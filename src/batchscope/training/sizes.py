"""Which batch sizes can this task be trained at? Those that fit the data, and that the model can take."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

from batchscope.errors import UsageError
from batchscope.task import Task
from batchscope.training.checks import refusal, sample, text
from batchscope.training.fingerprint import CPU
from batchscope.training.seeding import seed_everything
from batchscope.training.step import make_model
