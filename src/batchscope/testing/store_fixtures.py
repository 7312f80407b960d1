"""What do all tests of the store's contract begin with? A store, two owners, an unfinished trial."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from batchscope.records import TrialResult, TrialSpec
from batchscope.store.base import Store
from batchscope.store.owner import Owner
from batchscope.testing.examples import CONDITIONS, make_settings, make_spec


class StoreFixtures:
    """`open` is the one method that a subclass of the contract writes."""

    def open(self, folder: Path) -> Store:
        """A store that keeps its things in this folder; called again with the same folder it opens the same store."""
        raise NotImplementedError("a subclass of StoreContract says how to open its store")

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        with self.open(tmp_path) as store:
            yield store

    @pytest.fixture
    def me(self) -> Owner:
        return Owner.here("me")

    @pytest.fixture
    def other(self) -> Owner:
        """Another runner, alive: it is in this very process."""
        return Owner.here("other")

    @pytest.fixture
    def trial(self, store: Store) -> int:
        """An unfinished trial."""
        return self.add(store, make_spec())[0]

    def add(self, store: Store, *specs: TrialSpec, role: str = "held", study: str | None = None) -> list[int]:
        """Link trials to a study, by default the usual one."""
        return store.add_trials(study or store.save_study(make_settings()), role, "f" * 16, CONDITIONS, specs)

    def run(self, store: Store, trial: int, owner: Owner, result: TrialResult) -> None:
        """Lease and finish."""
        assert store.lease(trial, owner, 60).state == "leased"
        store.finish(trial, owner, result)
