"""What was measured, under which conditions? Frozen facts, with their units in the names.

Everything that travels between the parts of Batchscope is one of these: the loop makes evaluations, the
store keeps trials, the analysis reads them, the report draws them. Nothing here imports torch or any
other part of Batchscope, so a store can be opened and a report drawn on a laptop without torch.

    values.py      Measured and Goal; records to plain data and back
    trials.py      conditions, arms, stop rules, trials
    hardware.py    seconds and bytes against batch size
    noise.py       squared gradient norms, and the gradient noise scale
    studies.py     a study's settings, data and answer
    advice.py      which batch size to use: what `recommend` was asked, measured and answers
    branching.py   what a checkpoint says of larger batches
    scaling.py     steps and all-reduces on several devices
    scaled.py      what more devices buy: what `scale` answers
    sharpness.py   how flat, and how far from the start, stored weights are
    flatness.py    what `sharpness` answers

Words (one each, see docs/design.md): a *trial* is one training run; an *arm* is the trials that share
everything but the seed; batch sizes are global and in examples.
"""

from batchscope.records.advice import (
    LIMITS,
    OBJECTIVES,
    TRIED_ROLES,
    Advice,
    AdviceData,
    AdviceQuestion,
    Candidate,
    Curves,
    LearningRateCurve,
    ParetoPoint,
    Tried,
    Unverified,
)
from batchscope.records.branching import Branch, BranchAnswer, BranchPoint
from batchscope.records.flatness import CauseRow, DistanceRow, DistanceTrace, FlatnessRow, Growth, SharpnessResult
from batchscope.records.hardware import (
    MEMORY_OUTCOMES,
    FlopCount,
    MemoryFit,
    MemoryParts,
    MemoryProbe,
    MemoryProfile,
    MicroBatch,
    ProfileData,
    ProfileResult,
    Split,
    SplitTiming,
    StepTimeFit,
    StepTiming,
    ThroughputRow,
    TimingPass,
)
from batchscope.records.noise import (
    NOISE_METRICS,
    NOISE_OUTCOMES,
    NOISE_SOURCES,
    Deviations,
    GradientNorms,
    NoiseAgainstSweep,
    NoisePoint,
    NoiseReport,
    NoiseResult,
    NoiseRun,
    NoiseScale,
    Principle,
    PrinciplePoint,
)
from batchscope.records.scaled import (
    DeviceChoice,
    NetworkFit,
    ScalingFit,
    ScalingPrediction,
    ScalingResult,
    ScalingRow,
)
from batchscope.records.scaling import (
    AllReduceTiming,
    Network,
    ScalingData,
    ScalingPass,
    ScalingQuestion,
)
from batchscope.records.sharpness import (
    BoxSharpness,
    Continued,
    Density,
    Landscape,
    LayerDistance,
    Line,
    PointSharpness,
    SharpnessData,
    SharpnessQuestion,
    Slice,
)
from batchscope.records.studies import (
    Claim,
    Effect,
    LawFit,
    Row,
    Spent,
    StudyData,
    StudyResult,
    StudySettings,
    Target,
    TunedChoice,
)
from batchscope.records.trials import (
    ENDINGS,
    OUTCOMES,
    POLICIES,
    Arm,
    Conditions,
    Engine,
    Evaluation,
    StopRule,
    TrialRecord,
    TrialResult,
    TrialSpec,
)
from batchscope.records.values import Goal, Measured, finite, from_plain, json_safe, to_plain

__all__ = [
    "ENDINGS",
    "LIMITS",
    "MEMORY_OUTCOMES",
    "NOISE_METRICS",
    "NOISE_OUTCOMES",
    "NOISE_SOURCES",
    "OBJECTIVES",
    "OUTCOMES",
    "POLICIES",
    "TRIED_ROLES",
    "Advice",
    "AdviceData",
    "AdviceQuestion",
    "AllReduceTiming",
    "Arm",
    "BoxSharpness",
    "Branch",
    "BranchAnswer",
    "BranchPoint",
    "Candidate",
    "CauseRow",
    "Claim",
    "Conditions",
    "Continued",
    "Curves",
    "Density",
    "Deviations",
    "DeviceChoice",
    "DistanceRow",
    "DistanceTrace",
    "Effect",
    "Engine",
    "Evaluation",
    "FlatnessRow",
    "FlopCount",
    "Goal",
    "GradientNorms",
    "Growth",
    "Landscape",
    "LawFit",
    "LayerDistance",
    "LearningRateCurve",
    "Line",
    "Measured",
    "MemoryFit",
    "MemoryParts",
    "MemoryProbe",
    "MemoryProfile",
    "MicroBatch",
    "Network",
    "NetworkFit",
    "NoiseAgainstSweep",
    "NoisePoint",
    "NoiseReport",
    "NoiseResult",
    "NoiseRun",
    "NoiseScale",
    "ParetoPoint",
    "PointSharpness",
    "Principle",
    "PrinciplePoint",
    "ProfileData",
    "ProfileResult",
    "Row",
    "ScalingData",
    "ScalingFit",
    "ScalingPass",
    "ScalingPrediction",
    "ScalingQuestion",
    "ScalingResult",
    "ScalingRow",
    "SharpnessData",
    "SharpnessQuestion",
    "SharpnessResult",
    "Slice",
    "Spent",
    "Split",
    "SplitTiming",
    "StepTimeFit",
    "StepTiming",
    "StopRule",
    "StudyData",
    "StudyResult",
    "StudySettings",
    "Target",
    "ThroughputRow",
    "TimingPass",
    "TrialRecord",
    "TrialResult",
    "TrialSpec",
    "Tried",
    "TunedChoice",
    "Unverified",
    "finite",
    "from_plain",
    "json_safe",
    "to_plain",
]
