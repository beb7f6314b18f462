"""Chooses the variant that answers, from what was measured when the variants were published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from millis_server.catalogue import Served, State, Variant
from millis_server.errors import ModelNotFound, ModelUnavailable, QualityUnavailable


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the caller asks of the choice.

    Attributes:
        version: version that must answer; empty is the current one.
        pin_variant: variant that must answer; empty is free choice.
        min_quality: lowest acceptable measured quality.
        latency_target: seconds in which the caller hopes for the answer; 0 is none.
    """

    version: str = ""
    pin_variant: str = ""
    min_quality: float = 0.0
    latency_target: float = 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """What answers, and why."""

    served: Served
    degraded: bool
    reason: str


NO_WISHES = Wishes()


def choose(variants: Sequence[Variant], wishes: Wishes = NO_WISHES) -> Choice:
    """Chooses among the variants of one model.

    A pinned variant is used whatever else is asked. Otherwise: variants below `min_quality` are out; with a
    latency target the best variant whose measured median fits, or the fastest; without one the default variant,
    or the best that is ready.

    Args:
        variants: of one logical model, at least one.
        wishes: from the request.

    Raises:
        ModelNotFound: no such variant or version.
        QualityUnavailable: no variant is good enough.
        ModelUnavailable: variants that would do are not ready.
    """
    if wishes.pin_variant:
        return Choice(_pinned(variants, wishes), False, "pinned by the caller")
    good = [variant for variant in variants if _quality(variant) >= wishes.min_quality]
    if not good:
        best = max(map(_quality, variants))
        raise QualityUnavailable(
            f"no variant of {variants[0].manifest.model!r} was measured at {wishes.min_quality:g} or better; "
            f"the best has {best:.4g}"
        )
    ready = [(variant, served) for variant in good if (served := _ready(variant, wishes.version))]
    if not ready:
        raise _not_ready(good, wishes.version)
    default = next((variant for variant in variants if variant.manifest.default_variant), variants[0])
    if wishes.latency_target:
        variant, served, reason = _within(ready, wishes.latency_target)
    else:
        variant, served = next((pair for pair in ready if pair[0] is default), max(ready, key=_by_quality))
        reason = "default variant" if variant is default else _why_not(default, good)
    return Choice(served, _quality(variant) < _quality(default), reason)


def _pinned(variants: Sequence[Variant], wishes: Wishes) -> Served:
    for variant in variants:
        if variant.manifest.variant == wishes.pin_variant:
            if served := _ready(variant, wishes.version):
                return served
            raise _not_ready([variant], wishes.version)
    names = ", ".join(variant.manifest.variant for variant in variants)
    raise ModelNotFound(
        "variant",
        wishes.pin_variant,
        f"model {variants[0].manifest.model!r} has no variant {wishes.pin_variant!r}; variants are: {names}",
    )


def _within(ready: list[tuple[Variant, Served]], target: float) -> tuple[Variant, Served, str]:
    """The best variant whose measured median for one text of usual length fits, or the fastest."""
    fitting = [pair for pair in ready if _latency(pair[0]) <= target]
    if fitting:
        variant, served = max(fitting, key=_by_quality)
        return variant, served, f"best variant measured within {target * 1e3:g} ms"
    variant, served = min(ready, key=lambda pair: _latency(pair[0]))
    return variant, served, f"fastest variant; none was measured within {target * 1e3:g} ms"


def _ready(variant: Variant, version: str) -> Served | None:
    return variant.serving(version) if variant.state is State.READY else None


def _not_ready(variants: Sequence[Variant], version: str) -> ModelNotFound | ModelUnavailable:
    model = variants[0].manifest.model
    if version and any(variant.state is State.READY for variant in variants):
        loaded = sorted({s.version for v in variants for s in (v.current, v.standby) if s is not None})
        return ModelNotFound(
            "version",
            version,
            f"version {version!r} of {model!r} is not loaded; loaded are: {', '.join(loaded)}",
        )
    states = "; ".join(
        f"{variant.manifest.variant} is {variant.state.value}{': ' if variant.reason else ''}{variant.reason}"
        for variant in variants
    )
    return ModelUnavailable(f"model {model!r} cannot answer now: {states}")


def _why_not(default: Variant, good: Sequence[Variant]) -> str:
    if default not in good:
        return "best variant that meets min_quality"
    return f"default variant {default.manifest.variant!r} is {default.state.value}"


def _by_quality(pair: tuple[Variant, Served]) -> float:
    return _quality(pair[0])


def _quality(variant: Variant) -> float:
    """Measured quality; a variant published without evaluation data meets no floor above 0."""
    quality = variant.manifest.quality
    return quality.value if quality else 0.0


def _latency(variant: Variant) -> float:
    """Measured median, in seconds, of one text of the length nearest to 16 tokens; unmeasured is never fast enough."""
    profile = variant.manifest.latency
    single = [point for point in profile.points if point.batch == 1] if profile else []
    if not single:
        return float("inf")
    return min(single, key=lambda point: abs(point.tokens - 16)).p50_ms / 1e3
