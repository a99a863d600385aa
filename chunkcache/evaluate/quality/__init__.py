"""How much an answer loses when chunks are reused: on your questions, against full recompute.

`read_questions` → `evaluate` (one JSON line a question, resumable) → `summarise` → table, picture.
"""

from __future__ import annotations

from chunkcache.evaluate.quality.arms import Arm, parse_arms
from chunkcache.evaluate.quality.calibrate import (
    AlphaStep,
    Reliability,
    alpha_arms,
    calibrate,
    calibrate_alpha,
    calibration_arms,
    check_enough,
)
from chunkcache.evaluate.quality.questions import Question, read_questions
from chunkcache.evaluate.quality.results import read_lines
from chunkcache.evaluate.quality.run import Beside, Evaluation, evaluate
from chunkcache.evaluate.quality.summary import (
    ArmSummary,
    Bin,
    Summary,
    paired_difference,
    reliability_bins,
    summarise,
)

__all__ = [
    "AlphaStep",
    "Arm",
    "ArmSummary",
    "Beside",
    "Bin",
    "Evaluation",
    "Question",
    "Reliability",
    "Summary",
    "alpha_arms",
    "calibrate",
    "calibrate_alpha",
    "calibration_arms",
    "check_enough",
    "evaluate",
    "paired_difference",
    "parse_arms",
    "read_lines",
    "read_questions",
    "reliability_bins",
    "summarise",
]
