"""What is compared: a repair policy at a budget, or a drift target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from chunkcache.errors import InvalidRequest
from chunkcache.policy_names import RepairPolicyName
from chunkcache.protocol import ChunkCacheOptions, Exactness
from chunkcache.service.calibration import CALIBRATED_POLICY

if TYPE_CHECKING:
    from collections.abc import Sequence

_BUDGETLESS = {"none": 0.0, "all": 1.0}
_WITH_ALPHA = ("cfo", "focused")
_TARGET = "drift"


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of answering from the cache."""

    policy: RepairPolicyName
    budget: float
    drift: float | None = None  # a target, instead of the two
    alpha: float | None = None  # of Cache-Craft's fix overhead

    @property
    def name(self) -> str:
        """`question@0.15`; `none` and `all` have no budget; `drift@0.02` is a target.

        `cfo:0.3` is an α without a ceiling, `cfo:0.3@0.15` one under a budget.
        """
        if self.drift is not None:
            return f"{_TARGET}@{self.drift:g}"
        if self.alpha is not None:
            ceiling = "" if self.budget == 1.0 else f"@{self.budget:g}"
            return f"{self.policy}:{self.alpha:g}{ceiling}"
        return self.policy if self.policy in _BUDGETLESS else f"{self.policy}@{self.budget:g}"

    @property
    def options(self) -> ChunkCacheOptions:
        """The same wish in a request."""
        if self.drift is not None:
            return ChunkCacheOptions(exactness=Exactness(drift=self.drift))
        return ChunkCacheOptions(policy=self.policy, budget=self.budget, cfo_alpha=self.alpha)


def parse_arms(texts: Sequence[str], budgets: Sequence[float]) -> list[Arm]:
    """Arms from names: `question` stands for every budget, `question@0.1` for that one.

    `drift@0.02` stands for a drift target of 0.02 nats, `cfo:0.3` for α = 0.3.

    Raises:
        InvalidRequest: an unknown policy, a budget outside 0..1 or of a policy that takes none, a
            target that is not above 0, or an α outside of that or of a policy that has none.
    """
    arms: list[Arm] = []
    for text in texts:
        whole, given, value = text.partition("@")
        name, has_alpha, alpha = whole.partition(":")
        if name == _TARGET and not has_alpha:
            arms.append(Arm(CALIBRATED_POLICY, 1.0, _target(value)))
            continue
        policy = next((known for known in get_args(RepairPolicyName) if known == name), None)
        if policy is None:
            known = ", ".join(get_args(RepairPolicyName))
            raise InvalidRequest.of("policies", name, f"one of {known}", "question@0.15, say")
        if has_alpha:
            ceiling = _budget(value) if given else 1.0
            arms.append(Arm(policy, ceiling, alpha=_alpha(policy, alpha)))
            continue
        if name in _BUDGETLESS:
            if given:
                raise InvalidRequest.of("policies", text, name, "it takes no budget")
            wanted: Sequence[float] = [_BUDGETLESS[name]]
        else:
            wanted = [_budget(value)] if given else budgets
        arms += [Arm(policy, budget) for budget in wanted]
    return list(dict.fromkeys(arms))


def _target(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 < value < float("inf"):
        raise InvalidRequest.of("drift", text, "a number above 0, in nats", "drift@0.02, say")
    return value


def _alpha(policy: str, text: str) -> float:
    if policy not in _WITH_ALPHA:
        known = ", ".join(_WITH_ALPHA)
        raise InvalidRequest.of("policies", f"{policy}:{text}", f"one of {known}", "cfo:0.3, say")
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 < value <= 1.0:
        raise InvalidRequest.of("alpha", text, "a number above 0, at most 1", "cfo:0.3, say")
    return value


def _budget(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise InvalidRequest.of("budget", text, "a number from 0 to 1", "question@0.15, say")
    return value
