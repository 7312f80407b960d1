"""What can go wrong, and whose move is next?

    BatchscopeError             every error that Batchscope raises on purpose; carries an exit code
    ├── UsageError              the command or call is malformed: nothing was started          (exit 2)
    ├── TaskError               the task cannot be measured as it stands: says what to change  (exit 1)
    │   └── UnsupportedTask     a kind of training that Batchscope does not measure, by name   (exit 1)
    ├── StoreError              the store cannot be used: not ours, read-only, newer, full     (exit 1)
    └── CannotAnswer            the work was done and does not suffice: says what to try       (exit 1)

"Did not reach the goal", "diverged" and "the worker died" are results, not errors: they are
outcomes in `records.TrialRecord`. Every message is one sentence: what was expected, what came, what
to do instead.
"""

from __future__ import annotations


class BatchscopeError(Exception):
    """Base of every deliberate error; `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(BatchscopeError):
    """A malformed command or call. Nothing was started, nothing was stored."""

    exit_code = 2


class TaskError(BatchscopeError):
    """The task cannot be measured as it stands; found before compute was spent wherever possible."""


class UnsupportedTask(TaskError):
    """A kind of training that Batchscope does not measure: iterable data, several optimisers, closures."""


class StoreError(BatchscopeError):
    """The store file cannot be used: not a Batchscope store, read-only, newer than us, or its disk is full."""


class CannotAnswer(BatchscopeError):
    """The question could not be answered from what was measured."""
