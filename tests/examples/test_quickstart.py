"""The first tour runs, against a gateway with made-up answers."""

from __future__ import annotations

import re

import pytest

from examples import quickstart
from millis.testing import FakeGateway, classified
from millis.v1 import inference_pb2 as pb


def test_the_tour_asks_each_default_model_and_prints_what_it_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tagged = pb.TokenClassification(entities=[pb.Entity(label="PER", text="Amara Okafor")])
    with FakeGateway() as gateway:
        monkeypatch.setenv("MILLIS_TARGET", gateway.target)
        gateway.script("ClassifyText", classified("missing_parcel"), classified("negative", "neutral"))
        gateway.script("ClassifyTokens", pb.ClassifyTokensResponse(results=[tagged]))
        gateway.script("RankTexts", pb.RankTextsResponse(results=[pb.RankedText(index=1, score=0.5)]))
        quickstart.main()
        asked = [(request.method, request.message.model) for request in gateway.requests]
    assert asked == [
        ("ClassifyText", "intent"),
        ("ClassifyText", "sentiment"),
        ("ClassifyTokens", ""),
        ("RankTexts", ""),
        ("EmbedText", ""),
    ]
    *lines, vector = capsys.readouterr().out.splitlines()
    assert lines == [
        "intent:    missing_parcel 1.00",
        "sentiment: negative 1.00 | Profit warning sends shares of the chipmaker down 12 %",
        "sentiment: neutral 1.00 | Board to meet on 3 May to consider results",
        "entities:  Amara Okafor (PER)",
        "best:      You can send it back within 30 days. 0.50",
    ]
    assert re.fullmatch(r"vector:    8 dimensions from \w+, \d+\.\d ms in the gateway", vector)
