"""Does every number know its paper?"""

from __future__ import annotations

import re

import pytest

from batchscope.records import Claim, Effect, LawFit, Measured
from batchscope.references import REFERENCES, cite, keys

NOTHING = Measured(None, None, None, 0)


def test_keys_carry_the_first_author() -> None:
    for key, reference in REFERENCES.items():
        assert key == reference.key
        assert key.startswith(reference.authors.split(",")[0].lower())
        assert reference.arxiv is None or re.fullmatch(r"\d{4}\.\d{5}", reference.arxiv)
        assert reference.arxiv or reference.where


def test_cite() -> None:
    law = LawFit(NOTHING, NOTHING, None, (), (), ())
    assert keys(law) == ("mccandlish2018",)
    assert "arXiv:1812.06162" in cite(law)
    for number in range(1, 8):
        claim = Claim(number, "", "held", "holds", Effect("", NOTHING, None, None), "")
        assert "holm1979" in keys(claim)
        assert all(key in REFERENCES for key in keys(claim))
        assert len(cite(claim).splitlines()) == len(keys(claim))


def test_what_is_not_a_record_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a record"):
        cite("law")
