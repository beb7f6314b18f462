"""Routing by deadline under load: a service that may choose among variants, and the same one pinned to the best.

    python -m benchmarks.routing --repository model_repository --model intent

Load is open-loop (arrivals.py) and stepped from 30 % to 200 % of the best variant's capacity, which is measured first
with closed-loop callers. Every request has a deadline. In every step both sides are asked the same texts at the same
moments, one after the other, of the same gateway:

- `routed`: the gateway chooses the variant and refuses what it cannot do in time;
- `pinned`: every request is pinned to the best variant; the gateway refuses what that one cannot do in time.

An answer counts when it is there within the deadline from the intended moment of sending. Refused requests
(RESOURCE_EXHAUSTED) are not admitted; every other one is, also when it never got anywhere. The generator runs in this
process, on the cores of the service: its share of them is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import platform
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import grpc
import numpy as np
import uvloop

from benchmarks.arrivals import Sent, open_loop, poisson
from benchmarks.gateway import running_gateway
from benchmarks.load import tasks
from benchmarks.routing_picture import picture
from millis.v1 import inference_pb2, inference_pb2_grpc, models_pb2, models_pb2_grpc, types_pb2
from millis_pipeline.latency import machine
from millis_server.pace import FORGET_SECONDS

ROUTED, PINNED = "routed", "pinned"
LIBRARIES = ("onnxruntime", "nvidia-pytriton", "grpcio", "tokenizers", "numpy")
REFUSED = grpc.StatusCode.RESOURCE_EXHAUSTED
MOST_REQUESTS = 20_000
"""Of one side in one step."""

SETTLE_SECONDS = 1.0
"""Pause between two sides, in which what is under way ends."""

CALM_SECONDS = 4 * FORGET_SECONDS
"""Pause after the capacity was measured. The gateway has learned how slow the best variant is in a crowd, and would go
by that in the first step, which has none."""


@dataclass(frozen=True)
class Reply:
    """What became of one request: the variant that answered, or the status."""

    variant: str
    status: grpc.StatusCode


@dataclass(frozen=True)
class Step:
    """What one side did under one load.

    Attributes:
        side: routed or pinned.
        load: of the best variant's capacity.
        offered: requests in a second.
        admitted: share of the requests that were not refused.
        in_time: share of the admitted that were answered within the deadline.
        goodput: answers within the deadline in a second.
        quality: mean measured quality of these.
        mix: share of each variant in these.
        p50_ms, p99_ms: of the time of all answers, late ones too.
        refused_ms: median time to a refusal; not a number when there was none.
        late_ms: 99th percentile of what the generator was late.
        generator: share of one core that the generator took.
    """

    side: str
    load: float
    offered: float
    admitted: float
    in_time: float
    goodput: float
    quality: float
    mix: dict[str, float]
    p50_ms: float
    p99_ms: float
    refused_ms: float
    late_ms: float
    generator: float


class Caller:
    """Asks one gateway for one model.

    Args:
        stub: of the gateway.
        model: logical name.
        texts: asked in turn.
        pin: variant that must answer; empty leaves the choice to the gateway.
        deadline: seconds from the intended moment of sending.
    """

    def __init__(
        self,
        stub: inference_pb2_grpc.InferenceServiceStub,
        model: str,
        texts: Sequence[str],
        pin: str = "",
        deadline: float = 30.0,
    ) -> None:
        self._call = stub.ClassifyText
        self._deadline = deadline
        options = types_pb2.RequestOptions(slo=types_pb2.Slo(pin_variant=pin))
        self._requests = [
            inference_pb2.ClassifyTextRequest(model=model, texts=[text], options=options) for text in texts
        ]

    async def ask(self, number: int, late: float = 0.0) -> Reply:
        """Asks one text; what the generator was late is taken from its deadline."""
        request = self._requests[number % len(self._requests)]
        try:
            response = await self._call(request, timeout=max(self._deadline - late, 0.001))
        except grpc.aio.AioRpcError as error:
            return Reply("", error.code())
        return Reply(response.info.served_by.variant, grpc.StatusCode.OK)


def main() -> None:
    """Measures, prints a Markdown table and writes the picture."""
    arguments = _parser().parse_args()
    texts = _texts(arguments.texts)
    with running_gateway(arguments.repository) as gateway:
        steps, capacity, qualities = uvloop.run(_measure(arguments, gateway.target, texts))
    _print(arguments, texts, steps, capacity, qualities)
    arguments.picture.parent.mkdir(parents=True, exist_ok=True)
    arguments.picture.write_text(picture(steps), "utf-8")
    print(f"\nPicture: {arguments.picture}")


async def _measure(
    arguments: argparse.Namespace, target: str, texts: Sequence[str]
) -> tuple[list[Step], float, dict[str, float]]:
    """All steps, the capacity of the best variant in requests a second, and the quality of each variant."""
    options = [("grpc.enable_http_proxy", 0)]
    async with grpc.aio.insecure_channel(target, options) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        qualities = await _qualities(channel, arguments.model)
        best = max(qualities, key=lambda name: qualities[name])
        for variant in qualities:
            await tasks(Caller(stub, arguments.model, texts, variant).ask, 4, 100)
        closed = await tasks(Caller(stub, arguments.model, texts, best).ask, arguments.callers, arguments.requests)
        capacity = closed.throughput
        await asyncio.sleep(CALM_SECONDS)
        deadline = arguments.deadline_ms / 1e3
        sides = {
            ROUTED: Caller(stub, arguments.model, texts, "", deadline),
            PINNED: Caller(stub, arguments.model, texts, best, deadline),
        }
        steps = []
        for number, load in enumerate(arguments.loads):
            moments = poisson(load * capacity, arguments.seconds, MOST_REQUESTS, seed=number)
            for side, caller in sides.items():
                await asyncio.sleep(SETTLE_SECONDS)
                busy = time.process_time()
                sent = await open_loop(caller.ask, moments)
                busy = time.process_time() - busy
                steps.append(_step(side, load, sent, arguments.seconds, deadline, qualities, busy))
                print(f"{side} at {load:.0%}: goodput {steps[-1].goodput:.0f}/s", file=sys.stderr, flush=True)
        return steps, capacity, qualities


async def _qualities(channel: grpc.aio.Channel, model: str) -> dict[str, float]:
    request = models_pb2.GetModelRequest(name=model)
    answer = await models_pb2_grpc.ModelServiceStub(channel).GetModel(request)
    return {variant.name: variant.quality.value for variant in answer.model.variants}


def _step(
    side: str,
    load: float,
    sent: Sequence[Sent[Reply]],
    seconds: float,
    deadline: float,
    qualities: dict[str, float],
    busy: float,
) -> Step:
    admitted = [one for one in sent if one.outcome.status is not REFUSED]
    in_time = [one for one in admitted if one.outcome.status is grpc.StatusCode.OK and one.took <= deadline]
    took = [one.took for one in admitted if one.outcome.status is grpc.StatusCode.OK]
    refused = [one.took for one in sent if one.outcome.status is REFUSED]
    mix = Counter(one.outcome.variant for one in in_time)
    return Step(
        side=side,
        load=load,
        offered=len(sent) / seconds,
        admitted=len(admitted) / len(sent),
        in_time=len(in_time) / max(len(admitted), 1),
        goodput=len(in_time) / seconds,
        quality=sum(qualities[name] * count for name, count in mix.items()) / max(len(in_time), 1),
        mix={name: mix[name] / max(len(in_time), 1) for name in qualities},
        p50_ms=_percentile(took, 50),
        p99_ms=_percentile(took, 99),
        refused_ms=_percentile(refused, 50),
        late_ms=_percentile([one.late for one in sent], 99),
        generator=busy / seconds,
    )


def _percentile(seconds: Sequence[float], percent: float) -> float:
    return 1e3 * float(np.percentile(seconds, percent)) if seconds else float("nan")


def _print(
    arguments: argparse.Namespace,
    texts: Sequence[str],
    steps: Sequence[Step],
    capacity: float,
    qualities: dict[str, float],
) -> None:
    best = max(qualities, key=lambda name: qualities[name])
    names = sorted(qualities, key=lambda name: -qualities[name])
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    print(f"{machine()}; Python {platform.python_version()}, {libraries}\n")
    print(
        f"{len(texts)} texts of {arguments.texts}; deadline {arguments.deadline_ms:g} ms; "
        f"{arguments.seconds:g} s for each side in each step"
    )
    print("Quality: " + ", ".join(f"{name} {qualities[name]:.4f}" for name in names))
    print(f"Capacity of {best}, {arguments.callers} closed-loop callers: {capacity:.0f} requests/s\n")
    print(
        "| load | side | offered/s | admitted | in time | goodput/s | p50 ms | p99 ms | quality | mix | refusal ms "
        "| generator late ms | generator cores |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    for step in steps:
        mix = ", ".join(f"{name} {step.mix[name]:.0%}" for name in names if step.mix[name] > 0.0005)
        print(
            f"| {step.load:.0%} | {step.side} | {step.offered:.0f} | {step.admitted:.1%} | {step.in_time:.2%} "
            f"| {step.goodput:.0f} | {step.p50_ms:.1f} | {step.p99_ms:.1f} | {step.quality:.4f} | {mix} "
            f"| {step.refused_ms:.1f} | {step.late_ms:.1f} | {step.generator:.2f} |".replace("nan", "")
        )
    print()
    for load in arguments.loads:
        goodput = {step.side: step.goodput for step in steps if step.load == load}
        print(f"Goodput at {load:.0%}: routed {goodput[ROUTED] / max(goodput[PINNED], 1e-9):.2f} times pinned")


def _texts(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        return [row["text"] for row in csv.DictReader(file)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--model", default="intent")
    parser.add_argument("--texts", type=Path, default=Path("pipeline/recipes/intent/test.csv"), help="CSV, column text")
    parser.add_argument("--deadline-ms", type=float, default=60.0)
    parser.add_argument("--loads", type=float, nargs="+", default=[0.3, 0.6, 0.9, 1.2, 1.5, 2.0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each side in each step")
    parser.add_argument("--callers", type=int, default=16, help="closed-loop callers that measure the capacity")
    parser.add_argument("--requests", type=int, default=1500, help="of these, together")
    parser.add_argument("--picture", type=Path, default=Path("benchmarks/results/routing.svg"))
    return parser


if __name__ == "__main__":
    main()
