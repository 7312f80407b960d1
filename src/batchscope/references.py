"""Which papers do the numbers rest on?

One key per paper, as `cite` prints it. arXiv numbers are given where the paper has one; the blog of 2020 and articles
older than it have none.
"""

from __future__ import annotations

from typing import Any

from batchscope.papers import PAPERS, Reference
from batchscope.records import (
    Advice,
    BranchAnswer,
    Claim,
    Evaluation,
    LawFit,
    MatchResult,
    Measured,
    NoiseReport,
    NoiseResult,
    NoiseScale,
    Row,
    ScalingResult,
    SharpnessResult,
    StudyResult,
)

REFERENCES: dict[str, Reference] = {r.key: r for r in PAPERS}

_CLAIM_KEYS = {
    1: ("chang2020",),
    2: ("keskar2016", "chang2020"),
    3: ("chang2020",),
    4: ("chang2020",),
    5: ("chang2020",),
    6: ("keskar2016", "hoffer2017", "chang2020"),
    7: ("shallue2019", "goyal2017", "hoffer2017"),
    8: ("chang2020",),
    9: ("chang2020",),
    10: ("keskar2016", "dinh2017"),
}


def keys(record: Any) -> tuple[str, ...]:
    """The keys of the papers that a record's numbers rest on; empty where they rest on nobody's paper."""
    if isinstance(record, LawFit):
        return ("mccandlish2018",)
    if isinstance(record, Claim):
        return (*_CLAIM_KEYS[record.number], "holm1979")
    if isinstance(record, Row):
        return ("schmee1979",) if record.reached < record.seeds else ()
    if isinstance(record, StudyResult):
        parts = (record.law, *record.claims, *record.rows)
        return tuple(dict.fromkeys(key for part in parts for key in keys(part)))
    if isinstance(record, NoiseScale):
        sign = ("naganuma2026",) if record.metric == "sign" else ()
        return ("mccandlish2018", "fieller1954", "vonneumann1941", "andrews1992", *sign)
    if isinstance(record, (NoiseReport, NoiseResult)):
        whole, against = (
            (record.scale, None) if isinstance(record, NoiseReport) else (record.run_average, record.against_sweep)
        )
        scales = (whole, *record.layers.values(), *record.proxies.values())
        source = ("gray2024",) if record.source == "examples" else ()
        sweep = ("zou2008", "merrill2025") if against is not None else ()
        return tuple(dict.fromkeys((*(key for scale in scales for key in keys(scale)), *source, *sweep)))
    if isinstance(record, Advice):
        return ("mccandlish2018", "li2024", "frazier2009", "delmoral2006")
    if isinstance(record, ScalingResult):
        law = ("mccandlish2018",) if record.critical_batch_size is not None else ()
        models = ("patarasuk2009", "sanders2009", "qiao2021")
        return tuple(dict.fromkeys((*models, *law, *(key for claim in record.claims for key in keys(claim)))))
    if isinstance(record, SharpnessResult):
        return _sharpness_keys(record)
    if isinstance(record, MatchResult):
        race = ("jamieson2016",) if record.rounds else ()
        of_remedies = (key for row in record.rows for key in row.sources if key in REFERENCES)
        return tuple(dict.fromkeys((*race, *of_remedies)))
    if isinstance(record, BranchAnswer):
        return ("merrill2025",)
    if isinstance(record, (Measured, Evaluation)):
        return ()
    raise TypeError(
        f"expected a record of an answer, got {type(record).__name__}: cite a LawFit, Claim, Row, study or noise scale"
    )


def _sharpness_keys(result: SharpnessResult) -> tuple[str, ...]:
    """By what was measured."""
    data, points = result.data, result.data.points
    rests = {
        "keskar2016": any(p.boxes for p in points) or any(line.kind in ("straight", "curved") for line in data.lines),
        "hutchinson1990": any(p.trace for p in points),
        "meyer2021": any(p.trace_again for p in points),
        "ubaru2017": any(p.density for p in points),
        "kwon2021": any(p.adaptive_sharpness is not None or p.adaptive_eigenvalue for p in points),
        "cohen2021": any(p.largest_eigenvalue for p in points),
        "andreyev2024": any(p.batch_sharpness for p in points),
        "li2018": bool(data.slices) or any(line.kind == "slice" for line in data.lines),
        "hoffer2017": bool(result.growth),
        "dinh2017": bool(points),
    }
    of_claims = (key for claim in result.claims for key in keys(claim))
    return tuple(dict.fromkeys((*(key for key, used in rests.items() if used), *of_claims)))


def cite(record: Any) -> str:
    """What a record's numbers rest on, one source a line."""
    return "\n".join(str(REFERENCES[key]) for key in keys(record))
