"""Does `batchscope scale` read its options, answer as JSON, and refuse what it cannot read?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from batchscope.cli.scale import link
from batchscope.errors import UsageError

from .conftest import SMALL, Here


@pytest.mark.parametrize(
    ("text", "latency", "bandwidth"),
    [
        ("5us,25GB/s", 5e-6, 25e9),
        ("1.5 ms, 10 Gbit/s", 1.5e-3, 1.25e9),
        ("3µs,450GB/s", 3e-6, 450e9),
        ("2e-5s,1e9B/s", 2e-5, 1e9),
    ],
)
def test_a_link_is_read(text: str, latency: float, bandwidth: float) -> None:
    assert link(text) == pytest.approx((latency, bandwidth))
    assert link(None) is None


@pytest.mark.parametrize("text", ["fast", "5us", "5us,25", "5,25GB/s", "us,GB/s", "5us;25GB/s", "5 weeks,1GB/s"])
def test_a_link_that_cannot_be_read_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="write --network 5us,25GB/s"):
        link(text)


def test_the_plan_and_bad_options(here: Here, tmp_path: Path) -> None:
    plan = json.loads(here("scale", str(SMALL), "--devices", "1", "--largest", "4", "--dry-run", "--json").out)
    assert (plan["task"], plan["measured"], plan["predicted"]) == ("small", [1], [])
    for options, said in (
        (("--devices", "x"), "expected --devices as whole numbers with commas"),
        (("--devices", "0"), "expected device counts from 1"),
        (("--network", "fast"), "write --network 5us,25GB/s"),
        (("--batch-sizes", "0"), "expected batch sizes that are whole numbers from 1 up"),
        (("--dance",), "No such option"),
    ):
        ended = here("scale", str(SMALL), *options)
        assert (ended.code, ended.out) == (2, "")
        assert said in ended.err
    assert not (tmp_path / "batchscope.db").exists() or json.loads(here("list", "--json").out)["scalings"] == []


def test_one_device_is_answered_as_one_json_object(here: Here) -> None:
    ended = here("scale", str(SMALL), "--devices", "1", "--batch-sizes", "16,64", "--no-report", "--json")
    answer = json.loads(ended.out)
    assert ended.code == 0
    assert {row["devices"] for row in answer["rows"]} == {1}
    assert answer["choices"] == answer["predictions"] == []
    listed = json.loads(here("list", "--json").out)["scalings"]
    assert [one["measured"] for one in listed] == [[1]]
