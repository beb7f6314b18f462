"""Chooses the variant that answers: the best by measured quality that is predicted to answer in time.

Time is the caller's latency target (a wish) and the gRPC deadline (a limit), whichever is less. Under load
predictions grow, so requests move to lighter variants that still meet the caller's floor of quality, and are
refused, before any work, when none of these can keep the deadline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from typing import NamedTuple

from millis_server.catalogue import Served, State, Variant
from millis_server.errors import DeadlineUnreachable, ModelNotFound, ModelUnavailable, QualityUnavailable
from millis_server.prediction import Forecast, Predictor

SAFETY_NET_SECONDS = 1.0
"""A deadline further away than this says when to give up, not how good the answer may be: the SDK and most callers
set one of many seconds on every call. The default variant answers then, if it can in time."""

IDLE_DOUBT = 3.0
"""What an idle machine is predicted to miss it is let try, up to this factor: there is nothing to hold up, and a
prediction under which nothing is ever tried would never be corrected. No less than the largest margin."""

MOST_WAITING = 0.4
"""Part of the time that may go in waiting for the best variant. The next ones may wait longer, each a little more, and
only the fastest for all of it: a queue that heavy work had filled would leave no time for light work behind it."""

MIN_RETRY_SECONDS = 0.01
"""Shortest delay told to a caller who is refused."""

QUALITY_DIGITS = 6
"""Digits after the point to which qualities are compared: a float of the wire carries no more."""


class Cause(Enum):
    """Why a variant was chosen, in a word for counters; `Choice.reason` says it to people."""

    DEFAULT = "default"
    PINNED = "pinned"
    BEST_IN_TIME = "best_in_time"
    LOAD = "load"
    """A better variant would have been in time on an idle machine."""
    FASTEST = "fastest"
    """Nothing is predicted to be in time: the target is missed, or an idle machine tries."""
    QUALITY_FLOOR = "quality_floor"
    DEFAULT_UNAVAILABLE = "default_unavailable"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the caller asks of the choice.

    Attributes:
        version: version that must answer; empty is the current one.
        pin_variant: variant that must answer; empty is free choice.
        min_quality: lowest acceptable measured quality.
        latency_target: seconds in which the caller hopes for the answer; 0 is none.
        time_left: seconds until the caller's deadline; None is no deadline.
    """

    version: str = ""
    pin_variant: str = ""
    min_quality: float = 0.0
    latency_target: float = 0.0
    time_left: float | None = None

    @property
    def hurried(self) -> bool:
        """Whether the caller says how soon the answer is wanted."""
        return bool(self.latency_target) or (self.time_left is not None and self.time_left <= SAFETY_NET_SECONDS)


@dataclass(frozen=True, slots=True)
class Choice:
    """What answers, and why.

    Attributes:
        served: the version.
        degraded: whether it is of lower measured quality than the default variant, or than what would have
            answered on an idle machine.
        reason: why, for people.
        cause: why, for counters.
        forecast: of the time to the answer.
    """

    served: Served
    degraded: bool
    reason: str
    cause: Cause
    forecast: Forecast = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Demand:
    """The size of a request before it is tokenized.

    Attributes:
        inputs: number of texts.
        characters: of all texts together.
    """

    inputs: int
    characters: int


NO_WISHES = Wishes()


class _Option(NamedTuple):
    variant: Variant
    served: Served
    forecast: Forecast


def choose(variants: Sequence[Variant], predictor: Predictor, demand: Demand, wishes: Wishes = NO_WISHES) -> Choice:
    """Chooses among the variants of one model.

    A pinned variant is the only candidate, whatever its quality. Otherwise variants below `min_quality` are out, and
    the best of the others that is predicted to answer in time is taken; among equals the default variant, then the
    faster. The best may wait for `MOST_WAITING` of the time and no more, lighter ones for longer. Without a target and
    without a near deadline the default variant comes before all others.

    When none is in time, the fastest answers if only the target is missed, else the request is refused. A variant
    whose latency was never measured is never predicted to be in time; it answers when it is all there is.

    Args:
        variants: of one logical model, at least one.
        predictor: of times, and of the work under way.
        demand: what the request asks for.
        wishes: from the request.

    Raises:
        ModelNotFound: no such variant or version.
        QualityUnavailable: no variant is good enough.
        ModelUnavailable: variants that would do are not ready.
        DeadlineUnreachable: none that would do can answer before the deadline.
    """
    load = predictor.load(variants[0].manifest, demand.inputs, demand.characters)
    if wishes.pin_variant:
        variant, served = _pinned(variants, wishes)
        option = _Option(variant, served, predictor.forecast(served.pace, load))
        _refuse_if_late(option, predictor, wishes.time_left)
        return Choice(served, False, "pinned by the caller", Cause.PINNED, option.forecast)
    good = _good(variants, wishes)
    default = next((variant for variant in variants if variant.manifest.default_variant), variants[0])
    hurried = wishes.hurried
    limit = min(wishes.latency_target or inf, inf if wishes.time_left is None else wishes.time_left)
    ready = _in_order(good, default, hurried, wishes.version)
    fastest = min([served.pace.typical for _, served in ready])
    options: list[_Option] = []
    for place, (variant, served) in enumerate(ready):
        forecast = predictor.forecast(served.pace, load)
        options.append(_Option(variant, served, forecast))
        if forecast.promised == inf:
            if not hurried:
                break
        else:
            share = MOST_WAITING + (1 - MOST_WAITING) * place / len(ready)
            waits = served.pace.typical == fastest or forecast.promised_wait <= share * limit
            if waits and forecast.promised <= limit:
                break
    else:
        options.append(min(options, key=lambda option: option.forecast.promised))
        _refuse_if_late(options[-1], predictor, wishes.time_left)
    return _chosen(options, default, good, hurried, limit)


def _good(variants: Sequence[Variant], wishes: Wishes) -> list[Variant]:
    good = [variant for variant in variants if _quality(variant) >= wishes.min_quality]
    if not good:
        best = max(map(_quality, variants))
        raise QualityUnavailable(
            f"no variant of {variants[0].manifest.model!r} was measured at {wishes.min_quality:g} or better; "
            f"the best has {best:.4g}"
        )
    return good


def _in_order(good: list[Variant], default: Variant, hurried: bool, version: str) -> list[tuple[Variant, Served]]:
    """The variants that are ready, the preferred first."""
    ready = [(variant, served) for variant in good if (served := _ready(variant, version))]
    if not ready:
        raise _not_ready(good, version)
    if len(ready) > 1:
        ready.sort(key=lambda pair: (-_quality(pair[0]), pair[0] is not default, pair[1].pace.typical))
        if not hurried:
            ready.sort(key=lambda pair: pair[0] is not default)
    return ready


def _chosen(options: list[_Option], default: Variant, good: list[Variant], hurried: bool, limit: float) -> Choice:
    """The last option is taken, those before it were passed over."""
    taken = options[-1]
    # What would have been taken on an idle machine.
    first = next((option for option in options if option.forecast.at_rest <= limit), taken)
    degraded = _quality(taken.variant) < max(_quality(first.variant), _quality(default))
    forecast = taken.forecast
    if hurried and forecast.promised > limit:
        cause, reason = Cause.FASTEST, f"fastest variant; none is predicted within {_ms(limit)}"
    elif first.variant is not taken.variant:
        name, late = first.variant.manifest.variant, first.forecast.promised > limit
        would = f"take {_ms(first.forecast.promised)}" if late else f"wait {_ms(first.forecast.promised_wait)}"
        cause, reason = Cause.LOAD, f"lighter under load: {name} would {would} of {_ms(limit)}"
    elif hurried or taken is not options[0]:
        cause, reason = Cause.BEST_IN_TIME, f"best variant predicted within {_ms(limit)}"
    elif taken.variant is default:
        cause, reason = Cause.DEFAULT, "default variant"
    elif default not in good:
        cause, reason = Cause.QUALITY_FLOOR, "best variant that meets min_quality"
    else:
        cause = Cause.DEFAULT_UNAVAILABLE
        reason = f"default variant {default.manifest.variant!r} is {default.state.value}"
    return Choice(taken.served, degraded, reason, cause, forecast)


def _refuse_if_late(fastest: _Option, predictor: Predictor, time_left: float | None) -> None:
    """Refuses what cannot be in time, at once and before any work."""
    forecast = fastest.forecast
    if time_left is None or forecast.promised == inf or forecast.promised <= time_left:
        return
    if predictor.idle and forecast.promised <= IDLE_DOUBT * time_left:
        return
    manifest = fastest.variant.manifest
    waiting = forecast.expected - forecast.at_rest
    # What waits drains as time goes by; more than all of it cannot be waited for.
    retry_after = max(min(forecast.promised - time_left, waiting), MIN_RETRY_SECONDS)
    raise DeadlineUnreachable(
        f"{manifest.model!r} cannot answer before the deadline in {_ms(time_left)}: variant {manifest.variant!r} is "
        f"predicted to take {_ms(forecast.promised)}, {_ms(waiting)} of it behind other work",
        retry_after,
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


def _pinned(variants: Sequence[Variant], wishes: Wishes) -> tuple[Variant, Served]:
    for variant in variants:
        if variant.manifest.variant == wishes.pin_variant:
            if served := _ready(variant, wishes.version):
                return variant, served
            raise _not_ready([variant], wishes.version)
    names = ", ".join(variant.manifest.variant for variant in variants)
    raise ModelNotFound(
        "variant",
        wishes.pin_variant,
        f"model {variants[0].manifest.model!r} has no variant {wishes.pin_variant!r}; variants are: {names}",
    )


def _ready(variant: Variant, version: str) -> Served | None:
    return variant.serving(version) if variant.state is State.READY else None


def _not_ready(variants: Sequence[Variant], version: str) -> ModelNotFound | ModelUnavailable:
    model = variants[0].manifest.model
    if version and any(variant.state is State.READY for variant in variants):
        loaded = sorted({served.version for variant in variants for served in variant.loaded})
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


def _quality(variant: Variant) -> float:
    """Measured quality; a variant published without evaluation data meets no floor above 0.

    Rounded as the floor of a request is: who asks for just what `GetModel` tells is answered.
    """
    quality = variant.manifest.quality
    return round(quality.value, QUALITY_DIGITS) if quality else 0.0
