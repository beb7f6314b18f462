"""`millis tune`: finds how a model runs best on this machine, and writes that into its config.pbtxt.

Stages: read, baseline, search, finals, report, apply. Everything is measured on a Triton of its own.
"""

from __future__ import annotations

import asyncio
import math
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import uvloop
from tqdm import tqdm

from millis_pipeline.agreement import agreement
from millis_pipeline.configuration import (
    Configuration,
    ConfigurationError,
    configured,
    search_space,
    unable,
    write_config,
)
from millis_pipeline.data import DataError
from millis_pipeline.finals import Findings, check_answers, choose
from millis_pipeline.search import Search, Target, finalists
from millis_pipeline.stand import CannotRun, Measured, Stand, answers, lone_caller, open_stand, saturated
from millis_pipeline.trials import TRIALS_FILE, Trial, Trials, TrialsError
from millis_pipeline.tune_plan import NotMet, Plan, TuneError, parser, read_plan
from millis_pipeline.tune_report import report_path, write_report
from millis_server.catalogue import Served
from millis_server.manifest_files import ManifestError
from millis_server.repository import RepositoryError
from millis_server.triton.backend.engine import DEVICES
from millis_server.triton.launcher import TritonFailed
from millis_server.triton.model_config import ConfigUnreadable, read_config

OK, FAILED, NOT_MET, INTERRUPTED = 0, 1, 3, 128 + signal.SIGINT

ERRORS = (ConfigurationError, ConfigUnreadable, DataError, ManifestError, RepositoryError, TrialsError, TritonFailed)

FINALISTS = 2
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s {postfix}"
HOPELESS = 1.3
"""A lone caller's median this many times the best one's: not worth loading further when latency is wanted."""


def main(argv: Sequence[str]) -> int:
    """Runs `millis tune`.

    Args:
        argv: arguments after `millis tune`.

    Returns:
        Exit code: 0 when a configuration meets the target, 3 when none does, 1 for an error, 130 when interrupted.
    """
    arguments = parser().parse_args(list(argv))
    try:
        plan = read_plan(arguments)
        return uvloop.run(_run(plan, arguments.repository, arguments.apply))
    except NotMet as error:
        print(f"millis tune: {error}", file=sys.stderr)
        return NOT_MET
    except (*ERRORS, TuneError) as error:
        print(f"millis tune: {error}", file=sys.stderr)
        return FAILED


async def _run(plan: Plan, repository: Path, apply: bool) -> int:
    """Measures until it is done or interrupted, and writes down what was found in either case."""
    findings = Findings()
    trials = Trials(plan.folder / TRIALS_FILE, plan.circumstances())
    report = report_path(plan.folder, plan.target)
    loop = asyncio.get_running_loop()
    task = loop.create_task(_measure(plan, trials, findings))
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    interrupted = False
    try:
        await task
    except asyncio.CancelledError:
        interrupted = True
    finally:
        if findings.trials:
            write_report(report, plan, findings)
    if interrupted:
        print(
            f"millis tune: interrupted; {len(findings.trials)} trials are kept in {trials.path}, and the same command "
            "goes on from there, or one with another target",
            file=sys.stderr,
        )
        return INTERRUPTED
    return _conclude(plan, findings, report, repository, apply)


async def _measure(plan: Plan, trials: Trials, findings: Findings) -> None:
    known = trials.comparable()
    async with open_stand() as stand:
        findings.trials.append(trials.keep(plan.baseline, *await _try(stand, plan, plan.baseline, math.inf)))
        space = search_space(list(plan.subjects), plan.compiled)
        never = unable(
            {name: subject.manifest.precision for name, subject in plan.subjects.items()}, map(str, space["engine"])
        )
        findings.trials += [
            trial
            for trial in known
            if trial.configuration != plan.baseline
            and trial.configuration.device in space["device"]
            and plan.target.judges(trial)
        ]
        findings.earlier = len(findings.trials) - 1
        if findings.earlier:
            _say(plan, f"goes on from {findings.earlier} trials of earlier runs")
        search = Search(space, plan.target, plan.baseline, findings.trials, never)
        await _search(stand, plan, search, trials, findings)
        try:
            await _finals(stand, plan, findings)
        except CannotRun as error:
            raise TuneError(f"a configuration that ran before does not run any more: {error}") from error


async def _search(stand: Stand, plan: Plan, search: Search, trials: Trials, findings: Findings) -> None:
    began = time.monotonic()
    with tqdm(total=plan.budget, desc=f"tune {plan.model}", unit="s", disable=None, bar_format=BAR) as progress:
        while (spent := time.monotonic() - began) < plan.budget:
            progress.update(spent - progress.n)
            best = _best(findings.trials)
            progress.set_postfix_str(f"{len(findings.trials)} trials, best {_figures(plan.target, findings.trials)}")
            configuration = search.propose()
            if configuration is None:
                _say(plan, "nothing is left to try")
                break
            trial = trials.keep(configuration, *await _try(stand, plan, configuration, best))
            search.tell(trial)
            findings.trials.append(trial)


async def _try(stand: Stand, plan: Plan, configuration: Configuration, best: float) -> tuple[Measured | None, str]:
    """Measures one configuration, or says why it cannot run."""
    subject = plan.subjects[configuration.variant]
    try:
        async with stand.loaded("trial", subject, configuration) as served:
            measured = await lone_caller(served, subject.rows, plan.phase)
            if plan.target.objective == "latency" and measured.p50_ms > HOPELESS * best:
                return measured, ""
            throughput = await saturated(served, subject.rows, plan.callers, plan.phase)
            return Measured(measured.p50_ms, measured.p99_ms, *throughput), ""
    except CannotRun as error:
        await stand.check()
        return None, str(error)


async def _finals(stand: Stand, plan: Plan, findings: Findings) -> None:
    """Measures the best and the repository's configuration in turn, round by round, so that a change of the machine's
    speed meets them all; the best of many single measurements would be the luckiest."""
    best = [trial.configuration for trial in finalists(findings.trials, plan.target, FINALISTS)]
    runners = list(dict.fromkeys([plan.baseline, *best]))
    if findings.trials[0].measured is None:
        runners.remove(plan.baseline)
    rounds: dict[Configuration, list[Measured]] = {runner: [] for runner in runners}
    async with AsyncExitStack() as stack:
        served = {
            runner: await stack.enter_async_context(
                stand.loaded(f"final-{place}", plan.subjects[runner.variant], runner)
            )
            for place, runner in enumerate(runners)
        }
        turns = [runner for number in range(plan.rounds) for runner in (runners if number % 2 else runners[::-1])]
        for runner in tqdm(turns, desc="finals", unit="turn", disable=None, leave=False):
            rows = plan.subjects[runner.variant].rows
            alone = await lone_caller(served[runner], rows, plan.phase)
            throughput = await saturated(served[runner], rows, plan.callers, plan.phase)
            rounds[runner].append(Measured(alone.p50_ms, alone.p99_ms, *throughput))
        findings.rounds = rounds
        for runner in runners:
            if runner.engine != plan.subjects[runner.variant].engine or runner.device != DEVICES[0]:
                findings.agreement[runner] = await _agreement(stand, plan, runner, served[runner])
    check_answers(findings, plan.qualities, plan.min_quality)
    choose(plan.baseline, plan.target, findings)


async def _agreement(stand: Stand, plan: Plan, runner: Configuration, served: Served) -> float:
    """How far a configuration answers as the engine does that the variant's quality was measured with."""
    subject = plan.subjects[runner.variant]
    as_measured = replace(runner, engine=subject.engine, device=DEVICES[0])
    async with stand.loaded("measured", subject, as_measured) as other:
        manifest = subject.manifest
        ours, theirs = await answers(served, subject.rows), await answers(other, subject.rows)
    return agreement(manifest.task, manifest.multi_label, ours, theirs)


def _conclude(plan: Plan, findings: Findings, path: Path, repository: Path, apply: bool) -> int:
    """Says what was found, and writes it into the repository when that was asked for."""
    report = f"report in {path}"
    for runner, reason in findings.refused.items():
        _say(plan, f"refused: {runner}: {reason}")
    if findings.winner is None:
        finals = {runner: measured for runner, measured in findings.finals.items() if runner not in findings.refused}
        if not finals:
            raise TuneError(f"nothing could be measured; {report}")
        nearest = min(finals, key=lambda runner: finals[runner].p99_ms)
        raise NotMet(
            f"no configuration of {plan.model} answers a lone caller within {plan.target.latency_ms:g} ms (p99); "
            f"the nearest takes {finals[nearest].p99_ms:.2f} ms: {nearest}; {report}"
        )
    if findings.winner == plan.baseline:
        _say(plan, f"nothing found is worth a change (the best: {findings.margin:.2f} times as good); {report}")
        return OK
    _say(plan, f"{findings.margin:.2f} times as good as what is there ({plan.target.objective}): {findings.winner}")
    folder = repository / plan.subjects[findings.winner.variant].manifest.triton_model
    if apply:
        write_config(folder, configured(read_config(folder), findings.winner))
        _say(plan, f"written into {folder}; a running gateway takes it over by itself. {report}")
    else:
        _say(plan, f"--apply writes it into {folder} (add --budget-seconds 0 to search no further). {report}")
    if findings.winner.variant != plan.baseline.variant:
        _say(plan, f"callers get variant {findings.winner.variant} when they pin it, or ask for what only it meets")
    return OK


def _best(trials: Sequence[Trial]) -> float:
    return min((trial.measured.p50_ms for trial in trials if trial.measured), default=math.inf)


def _figures(target: Target, trials: Sequence[Trial]) -> str:
    best = finalists(trials, target, 1)
    if not best or best[0].measured is None:
        return "none yet"
    measured = best[0].measured
    return f"{measured.p50_ms:.2f} ms" if target.objective == "latency" else f"{measured.per_second or 0:.0f}/s"


def _say(plan: Plan, message: str) -> None:
    print(f"{plan.model}: {message}", flush=True)
