"""A recorder of tapes in place of CUDA's."""

import pytest
from tapes import Rehearsal

from batchscope.training import graphs


@pytest.fixture
def rehearsal(monkeypatch):
    recorder = Rehearsal()
    monkeypatch.setattr(graphs, "recorder_for", lambda device: recorder)
    return recorder
