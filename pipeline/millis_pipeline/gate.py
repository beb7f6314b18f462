"""Decides which candidates are published, and which one is the default: measured quality, measured speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FASTER = 0.97
"""A variant is faster when it takes less than this share of the other's time: less is within the noise of measuring."""


@dataclass(frozen=True)
class Measured:
    """What the gate knows of a candidate.

    Attributes:
        name: of the variant.
        value: its quality.
        loss: quality of the PyTorch model less its own.
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
    refused = {}
    accepted: list[Measured] = []
    # Best quality first, and the fastest of equals: whoever could make a candidate superfluous comes before it.
    for one in sorted(candidates, key=lambda c: (-c.value, c.milliseconds)):
        reason = _reason(one, [*accepted, *(c for c in candidates if c.reference and c.value >= one.value)], max_loss)
        if reason and not one.reference:
            refused[one.name] = reason
        else:
            accepted.append(one)
    return Decision(refused, *choose_default(accepted, max_loss))


def decide_unmeasured(candidates: Sequence[Measured], max_loss: float) -> Decision:
    """Decides without data to measure quality on: everything is published but what was found unfit before.

    Args:
        candidates: all of them, one of them the reference.
        max_loss: largest loss of agreement that the default variant may have, absolute.
    """
    refused = {one.name: one.unfit for one in candidates if one.unfit and not one.reference}
    return Decision(refused, *choose_default([one for one in candidates if one.name not in refused], max_loss))


def _reason(one: Measured, better: Sequence[Measured], max_loss: float) -> str:
    if one.unfit:
        return one.unfit
    if one.loss > max_loss:
        return f"it loses {one.loss:.4f}, more than max_quality_loss {max_loss:g}"
    for other in better:
        if other is not one and one.milliseconds >= FASTER * other.milliseconds:
            return (
                f"it is not faster ({one.milliseconds:.2f} ms) than {other.name} ({other.milliseconds:.2f} ms), "
                "which is at least as good"
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
