"""The calibration of an installation: how much drift to expect of what, from measured questions.

One JSON file per model and prompt in the home folder. What it was fitted to is part of it: with
another model, prompt or born context it is not found, and drift is not predicted.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import structlog

from chunkcache.durable import whole_file
from chunkcache.errors import ConfigError
from chunkcache.repair.drift_curve import DriftCurve

if TYPE_CHECKING:
    from pathlib import Path

    from chunkcache.config import Settings
    from chunkcache.policy_names import RepairPolicyName

log = structlog.get_logger(__name__)

CALIBRATION_VERSION = 3  # what is repaired, or how, changed: 2 window of scores, 3 kept layers
CALIBRATED_POLICY: RepairPolicyName = "question"  # the policy whose probe yields a residual


@dataclass(frozen=True, slots=True)
class Calibration:
    """A drift curve, and how far to trust it; Cache-Craft's α where that was asked for."""

    curve: DriftCurve
    questions: int  # fitted to
    held_out_predicted: float  # mean predicted drift on questions not fitted to
    held_out_measured: float
    cfo_alpha: float | None = None


def calibration_path(settings: Settings, fingerprint: bytes) -> Path:
    """Where the calibration of this model under these settings is kept."""
    prompt = json.dumps(settings.prompt.model_dump(mode="json"), sort_keys=True)
    digest = hashlib.sha256(fingerprint + prompt.encode()).hexdigest()
    return settings.home / "calibration" / f"{digest[:32]}.json"


def load_calibration(settings: Settings, fingerprint: bytes) -> Calibration | None:
    """The calibration, or None where this model has none under these settings.

    One of another version is as none, and the log says so: what it was fitted to is not what
    answers are made by now.

    Raises:
        ConfigError: there is a file, and it is not a calibration.
    """
    path = calibration_path(settings, fingerprint)
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text())
        if data.pop("calibration_version") != CALIBRATION_VERSION:
            log.warning(
                "calibration_outdated", path=str(path), hint="run chunkcache calibrate again"
            )
            return None
        curve = DriftCurve(**{name: tuple(v) for name, v in data.pop("curve").items()})
        return Calibration(curve, **data)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ConfigError(
            f"home: {path} is not a calibration: {error}. Hint: remove it and run chunkcache "
            "calibrate again."
        ) from error


def store_calibration(settings: Settings, fingerprint: bytes, calibration: Calibration) -> Path:
    """Keep a calibration; written whole or not at all. Returns where. Raises StoreError."""
    path = calibration_path(settings, fingerprint)
    data = {"calibration_version": CALIBRATION_VERSION, **asdict(calibration)}
    with whole_file(path) as file:
        file.write(json.dumps(data, indent=1).encode())
    return path
