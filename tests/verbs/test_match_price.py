"""Does `match --dry-run` name what would be raced, and a price that the match keeps?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import batchscope as bs
from batchscope.analysis.race import MOST_COST, MOST_WHOLE, RATES
from batchscope.records import NO_REMEDY
from batchscope.verbs.match_price import price_match

from .match_tasks import EPOCHS, OWN, TRAIN, easy, stiff

RUN = EPOCHS * TRAIN


@pytest.mark.parametrize(
    "asked",
    [
        {"batch_size": 32, "remedies": ("linear scaling",)},
        {"batch_size": (8, 16), "remedies": ("train longer", "SAM"), "ladder": False},
        {"batch_size": 16, "remedies": (), "epochs": 3.0, "ladder": False},  # too short a race to drop anybody
        {"batch_size": 32, "remedies": ("growing batch (rule='on plateau')",), "confirm": 1},
    ],
    ids=["ladder", "longer runs", "short runs", "growing"],
)
def test_the_price_is_not_passed(path: Path, asked: dict[str, Any]) -> None:
    plan = price_match(stiff(), **asked, seeds=2, store=path)
    assert not path.exists()
    result = bs.match(stiff(), **asked, seeds=2, store=path, draw=False)
    assert result.spent is not None
    assert 0.3 * plan["at_most"]["examples"] <= result.spent.examples <= plan["at_most"]["examples"]
    assert {str(row.batch_size) for row in (result.baseline, *result.rows)} <= plan["runs"].keys()
    assert {c["remedy"] for c in plan["cannot_apply"]} == {c.remedy for c in result.cannot_apply}


def test_the_price_of_one_batch_size_by_hand(path: Path) -> None:
    """Two remedies with the large batch throughout race together, what trains four times as long by itself."""
    remedies = ("linear scaling", "train longer", "ghost batch norm")
    plan = price_match(easy(), batch_size=16, ladder=False, remedies=remedies, seeds=3, store=path)
    assert plan["raced"] == {"16": [NO_REMEDY, "linear scaling", "train longer"]}
    assert [c["remedy"] for c in plan["cannot_apply"]] == ["ghost batch norm"]
    own = (MOST_WHOLE + 3) * (RUN + OWN - 1)
    races = RATES * 2 * RUN // MOST_COST + RATES * 4 * RUN // MOST_COST
    fresh = 3 * (3 * (RUN + 15) + 4 * RUN + 15)  # untuned, both throughout, and four times as long
    assert plan["at_most"]["examples"] == own + races + fresh
    assert plan["at_most"]["reference_runs"] is None
    assert plan["at_most"]["seconds"] > 0
    assert plan["runs"] == {"4": round(own / RUN, 1), "16": round((races + fresh) / RUN, 1)}
    assert plan["sentences"][0].startswith(
        "easy: batch size 16 against 4; 3 fresh seeds; every run at most 768 examples"
    )


def test_a_budget_bounds_it_once_the_reference_run_is_known(path: Path) -> None:
    asked: dict[str, Any] = {"batch_size": 16, "remedies": (), "store": path}
    whole = price_match(easy(), **asked, budget=30)["at_most"]["examples"]
    bs.study(easy(), batch_sizes=(OWN, 16), policy="held", seeds=1, store=path, draw=False)
    bounded = price_match(easy(), **asked, budget=30)["at_most"]
    assert bounded["reference_runs"] == pytest.approx(30, rel=0.01)
    assert bounded["examples"] < whole
    assert price_match(easy(), **asked, budget=float("inf"))["at_most"]["examples"] == whole
