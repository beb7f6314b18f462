"""Decides which candidates are published, and which one is the default: measured quality, measured speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FASTER = 0.97
"""A variant is faster when it takes less than this share of the other's time: less is within the noise of measuring."""

SAME = 6
"""Digits that qualities are compared in: those after them are the rounding of cosines, also between equal models."""


@dataclass(frozen=True)
class Measured:
    """What the gate knows of a candidate.

    Attributes:
        name: of the variant.
        value: its quality, or its agreement with the PyTorch model where quality was not measured.
        loss: that of the PyTorch model less its own.
        milliseconds: of one text, see `latency.single_text_ms`.
        reference: whether it is the one without steps, which is published whatever was measured.
        unfit: a reason against it that was found before; empty when there is none.
    """

    name: str
    value: float
    loss: float
    milliseconds: float
    reference: bool = False
    unfit: str = ""


@dataclass(frozen=True)
class Decision:
    """What becomes of the candidates.

    Attributes:
        refused: for each one that is not published the reason.
        default: variant that answers requests without wishes.
        why: why that one.
    """

    refused: dict[str, str]
    default: str
    why: str


def decide(candidates: Sequence[Measured], max_loss: float) -> Decision:
    """Applies the gate.

    A candidate is refused when it loses more than allowed, or when another one, at least as good, takes no longer.

    Args:
        candidates: one of them the reference.
        max_loss: largest loss that is allowed, absolute.
    """
    losing = {
        one.name: f"it loses {one.loss:.4f}, more than max_quality_loss {max_loss:g}"
        for one in candidates
        if one.loss > max_loss
    }
    return _decide(candidates, losing, "is at least as good", max_loss)


def decide_unmeasured(candidates: Sequence[Measured], max_loss: float) -> Decision:
    """Applies the gate without data to measure quality on: by agreement with the PyTorch model.

    A candidate is refused when another one, that agrees at least as much, takes no longer. For agreeing too little none
    is: a few texts do not prove what it loses.

    Args:
        candidates: one of them the reference; their values are agreement.
        max_loss: largest loss of agreement that the default variant may have, absolute.
    """
    return _decide(candidates, {}, "agrees with PyTorch at least as much", max_loss)


def _decide(candidates: Sequence[Measured], losing: dict[str, str], as_good: str, max_loss: float) -> Decision:
    """Refuses what is unfit, what loses too much, and what is superfluous."""
    refused = {}
    accepted: list[Measured] = []
    # Best quality first, and the fastest of equals: whoever could make a candidate superfluous comes before it.
    for one in sorted(candidates, key=lambda c: (-round(c.value, SAME), c.milliseconds)):
        at_least = [c for c in candidates if c.reference and round(c.value, SAME) >= round(one.value, SAME)]
        reason = one.unfit or losing.get(one.name) or _superfluous(one, [*accepted, *at_least], as_good)
        if reason and not one.reference:
            refused[one.name] = reason
        else:
            accepted.append(one)
    return Decision(refused, *choose_default(accepted, max_loss))


def _superfluous(one: Measured, better: Sequence[Measured], as_good: str) -> str:
    for other in better:
        if other is not one and one.milliseconds >= FASTER * other.milliseconds:
            return (
                f"it is not faster ({one.milliseconds:.2f} ms) than {other.name} ({other.milliseconds:.2f} ms), "
                f"which {as_good}"
            )
    return ""


def choose_default(candidates: Sequence[Measured], max_loss: float) -> tuple[str, str]:
    """The fastest candidate within the allowed loss, and why; the reference when there is none.

    Args:
        candidates: what is published, one of them the reference.
        max_loss: largest loss that is allowed, absolute.
    """
    reference = next(one for one in candidates if one.reference)
    allowed = [one for one in candidates if one.loss <= max_loss and one.milliseconds < reference.milliseconds]
    if not allowed:
        return reference.name, "no other variant is faster and good enough"
    best = min(allowed, key=lambda one: one.milliseconds)
    ratio = reference.milliseconds / best.milliseconds
    return best.name, f"it is {ratio:.2f} times as fast as {reference.name} and loses {max(best.loss, 0):.4f}"
