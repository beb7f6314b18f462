"""The search of `millis tune`: an Optuna study of what is known, and the choice among its trials."""

from __future__ import annotations

import logging
import random
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import create_trial

from millis_pipeline.configuration import Configuration, simplest
from millis_pipeline.stand import Measured
from millis_pipeline.trials import Trial
from millis_server.triton.backend.engine import DEVICES

Objective = Literal["latency", "throughput"]
Place = tuple[str, str, str]
"""Variant, engine and device."""

TIE = 0.03
"""Trials this close to the best are taken to be as good, and the other objective decides between them. One short
measurement tells no finer."""

FAILED_COST = 1e6
"""Cost of what cannot run: from a trial without a value the sampler would learn nothing."""

ENOUGH_FAILURES = 2
"""Failures after which an engine is taken to be unable to run a variant: what it answers wrongly with one number of
threads it answers wrongly with any."""

MAX_REPEATS = 20
"""Proposals in a row that were all tried before, after which one that was not is drawn at random: the sampler goes back
to what is good while most of the space is untried."""


@dataclass(frozen=True)
class Target:
    """What is wanted.

    Attributes:
        objective: `latency` is the median of a lone caller, `throughput` the texts a second at saturation.
        latency_ms: largest p99 of a lone caller; None is no limit.
    """

    objective: Objective
    latency_ms: float | None = None

    def judges(self, trial: Trial) -> bool:
        """Whether the trial measured what this target asks for: a search for latency leaves throughput out where it
        is hopeless."""
        return self.objective == "latency" or trial.measured is None or trial.measured.per_second is not None

    def met(self, measured: Measured) -> bool:
        """Whether the limit holds."""
        return self.latency_ms is None or measured.p99_ms <= self.latency_ms

    def cost(self, measured: Measured) -> float:
        """What the search makes small: milliseconds for each text, more where the limit is exceeded."""
        own = measured.p50_ms if self.objective == "latency" else 1e3 / (measured.per_second or 1e-3)
        excess = 1.0 if self.latency_ms is None else max(1.0, measured.p99_ms / self.latency_ms)
        return own * excess**2


class Search:
    """A study, asked and told one trial at a time.

    It begins with one change at a time, starting from what is in the repository; then Optuna's tree-structured Parzen
    estimator proposes (Bergstra et al. 2011). Trials that are known already are told it first, at what they cost by
    the target of this search, and are not proposed again.

    Args:
        space: values of each field of a configuration.
        target: what is wanted.
        baseline: what is in the repository.
        known: trials in the circumstances of this search, whatever target they were made for.
        unable: pairs of variant and engine that cannot go together.
    """

    def __init__(
        self,
        space: Mapping[str, Sequence[str | int]],
        target: Target,
        baseline: Configuration,
        known: Sequence[Trial] = (),
        unable: Collection[tuple[str, str]] = (),
    ) -> None:
        optuna.logging.set_verbosity(logging.WARNING)
        # Another seed the more is known: the same one would propose what the run before has tried.
        sampler = optuna.samplers.TPESampler(seed=len(known))
        self._random = random.Random(len(known))
        self._study = optuna.create_study(sampler=sampler, direction="minimize")
        self._space = space
        self._distributions: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(list(choices)) for name, choices in space.items()
        }
        self._target = target
        self._unable = unable
        self._known = {trial.configuration: trial for trial in known}
        for trial in known:
            self._add(trial)
        for values in _single_changes(space, baseline):
            if len(values) < len(space) or simplest(Configuration(**values)) not in self._known:
                self._study.enqueue_trial(values)
        self._open: optuna.Trial | None = None

    def _add(self, trial: Trial) -> None:
        """Tells the study of a trial that it has not proposed, if it could have."""
        params = asdict(trial.configuration)
        if all(value in self._space[name] for name, value in params.items()):
            cost = self._cost(trial.measured)
            self._study.add_trial(create_trial(params=params, distributions=self._distributions, value=cost))

    def propose(self) -> Configuration | None:
        """The next configuration to measure, or None when there is nothing left to try."""
        while True:
            for _ in range(MAX_REPEATS):
                if (configuration := self._ask()) is not None:
                    return configuration
            untried = self._untried()
            if not untried:
                return None
            self._study.enqueue_trial(self._random.choice(untried))

    def _ask(self) -> Configuration | None:
        """What the study proposes; None, and the study is told, when it is known what would come of it."""
        trial = self._study.ask(self._distributions)
        configuration = simplest(Configuration(**trial.params))
        known = self._known.get(configuration)
        if known is not None:
            self._study.tell(trial, self._cost(known.measured))
        elif _place(configuration) in self._failing():
            self._study.tell(trial, FAILED_COST)
        else:
            self._open = trial
            return configuration
        return None

    def _untried(self) -> list[dict[str, Any]]:
        """The values of all configurations of which it is not known what would come of them."""
        failing = self._failing()
        found = []
        for values in product(*self._space.values()):
            named: dict[str, Any] = dict(zip(self._space, values, strict=True))
            configuration = simplest(Configuration(**named))
            if configuration not in self._known and _place(configuration) not in failing:
                found.append(named)
        return found

    def tell(self, trial: Trial) -> None:
        """Learns from the trial of the configuration that was proposed last."""
        assert self._open is not None, "propose() comes first. This is a bug."
        proposed, self._open = self._open, None
        self._study.tell(proposed, self._cost(trial.measured))
        self._known[trial.configuration] = trial

    def _cost(self, measured: Measured | None) -> float:
        return FAILED_COST if measured is None else self._target.cost(measured)

    def _failing(self) -> set[Place]:
        """Where nothing can run: pairs that cannot go together, and places that failed as often as is enough."""
        measured: defaultdict[Place, list[Measured | None]] = defaultdict(list)
        for trial in self._known.values():
            measured[_place(trial.configuration)].append(trial.measured)
        failed = {place for place, found in measured.items() if len(found) >= ENOUGH_FAILURES and not any(found)}
        return failed | {(*pair, device) for pair in self._unable for device in DEVICES}


def _place(configuration: Configuration) -> Place:
    return configuration.variant, configuration.engine, configuration.device


def _single_changes(space: Mapping[str, Sequence[str | int]], baseline: Configuration) -> Iterator[dict[str, Any]]:
    """The baseline with one field changed, for each value of each field in the order of the space; and all threads on
    one call, which is two changes. What the space does not hold is left to the sampler."""
    start = {name: value for name, value in asdict(baseline).items() if value in space[name]}
    yield {**start, "threads": space["threads"][-1], "workers": space["workers"][0]}
    for name, choices in space.items():
        for value in choices:
            if value != start.get(name):
                yield {**start, name: value}


def finalists(trials: Sequence[Trial], target: Target, count: int) -> list[Trial]:
    """The trials that are worth a second, fairer measurement, the best first: those that meet the target, and when
    none does, those that come nearest."""
    measured = [trial for trial in trials if trial.measured is not None]
    meeting = [trial for trial in measured if target.met(_of(trial))]
    if not meeting:
        return sorted(measured, key=lambda trial: _of(trial).p99_ms)[:count]
    meeting.sort(key=lambda trial: target.cost(_of(trial)))
    best = target.cost(_of(meeting[0]))
    tied = [trial for trial in meeting if target.cost(_of(trial)) <= (1 + TIE) * best]
    tied.sort(key=lambda trial: _other(_of(trial), target.objective))
    return [*tied, *meeting[len(tied) :]][:count]


def _other(measured: Measured, objective: Objective) -> float:
    return -(measured.per_second or 0.0) if objective == "latency" else measured.p50_ms


def _of(trial: Trial) -> Measured:
    assert trial.measured is not None, "only measured trials are compared. This is a bug."
    return trial.measured
