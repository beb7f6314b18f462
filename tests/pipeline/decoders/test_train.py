"""Training: what the loss counts, what is learned, when it stops."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from millis_pipeline.decoders.samples import Sample
from millis_pipeline.decoders.train import Course, fit, language_loss
from tests.pipeline.decoders.tiny_decoders import decoder

COURSE = Course(epochs=6, peak_rate=0.05, weight_decay=0.0, batch_tokens=64, patience=2, seed=0)


def test_the_loss_is_the_weighted_mean_of_counted_tokens() -> None:
    model = decoder()
    ids = torch.tensor([[1, 9, 31, 44], [1, 7, 0, 0]])
    weights = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.5, 1.0, 0.0, 0.0]])
    with torch.inference_mode():
        logs = torch.log_softmax(model(input_ids=ids).logits, -1)
        terms = [(0.5, logs[0, 0, 9]), (1.0, logs[0, 1, 31]), (1.0, logs[0, 2, 44]), (1.0, logs[1, 0, 7])]
        expected = -sum(weight * log for weight, log in terms) / 3.5
        torch.testing.assert_close(language_loss(model, ids, weights), expected)


class Guess(nn.Module):
    """One number that is to become 3."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1, 1))


def test_the_epoch_with_the_smallest_dev_loss_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    model = Guess()
    seen: list[float] = []
    said = iter([3.0, 1.0, 2.0, 2.0, 0.0])

    def loss_of(batch: Sequence[Sample]) -> torch.Tensor:
        return (model.value - 3).square().sum()

    def validate() -> float:
        seen.append(model.value.item())
        return next(said)

    samples = [Sample([random.Random(0).randrange(9)] * 8, [True] * 8) for _ in range(40)]
    assert fit(model, [samples], loss_of, COURSE, validate, "guess") == 1.0
    assert len(seen) == 4  # two epochs without a smaller loss end it
    assert model.value.item() == seen[1]
    assert seen[1] > seen[0] > 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("guess: epoch 2/6: loss ")
    assert lines[1].endswith("dev loss 1.0000 (best)")
    assert len(lines) == 4
