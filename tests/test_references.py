"""Does every number know its paper?"""

from __future__ import annotations

import re

import pytest

from batchscope.records import (
    Claim,
    Conditions,
    Effect,
    LawFit,
    Measured,
    NoiseAgainstSweep,
    NoiseResult,
    NoiseRun,
    NoiseScale,
)
from batchscope.references import REFERENCES, cite, keys

NOTHING = Measured(None, None, None, 0)


def test_keys_carry_the_first_author() -> None:
    for key, reference in REFERENCES.items():
        assert key == reference.key
        assert key.startswith(reference.authors.split(",")[0].lower().replace(" ", ""))
        assert reference.arxiv is None or re.fullmatch(r"\d{4}\.\d{5}", reference.arxiv)
        assert reference.arxiv or reference.where


def test_cite() -> None:
    law = LawFit(NOTHING, NOTHING, None, (), (), ())
    assert keys(law) == ("mccandlish2018",)
    assert "arXiv:1812.06162" in cite(law)
    for number in range(1, 10):
        claim = Claim(number, "", "held", "holds", Effect("", NOTHING, None, None), "")
        assert "holm1979" in keys(claim)
        assert all(key in REFERENCES for key in keys(claim))
        assert len(cite(claim).splitlines()) == len(keys(claim))


def test_cite_noise() -> None:
    scale = NoiseScale("resolved", NOTHING, NOTHING, NOTHING, 0, 0.0, 0.0)
    proxy = NoiseScale("resolved", NOTHING, NOTHING, NOTHING, 0, 0.0, 0.0, metric="sign")
    assert "Fieller (1954)" in cite(scale)
    assert "2602.03001" not in cite(scale)
    run = NoiseRun("t", "f", 1, None, 1, 0.1, Conditions())
    sweep = NoiseAgainstSweep("s", NOTHING, NOTHING)
    result = NoiseResult("t", "f", "examples", "examples", 1, scale, (), {}, {"sign": proxy}, (), sweep, run)
    assert {"mccandlish2018", "naganuma2026", "gray2024", "zou2008"} <= set(keys(result))
    assert len(cite(result).splitlines()) == len(set(keys(result)))


def test_what_is_not_a_record_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a record"):
        cite("law")
