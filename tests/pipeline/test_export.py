"""Whether a module can be exported, asked before it is trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModel

from millis_pipeline.architectures import Encoder
from millis_pipeline.classifier import MeanPoolClassifier
from millis_pipeline.export import ExportError, check_exportable
from tests.pipeline.architectures import ARCHITECTURES

NAMES = ("input_ids", "attention_mask")


class Branching(nn.Module):
    """Asks what is in its input, which a graph cannot."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return input_ids if int(input_ids.sum()) > 3 else attention_mask


class Plain(nn.Module):
    """Can be exported, and is of no architecture."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return (input_ids * attention_mask).float()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_of_a_known_architecture_one_layer_is_captured_and_the_module_stays_as_it_was(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    captured = []
    export = torch.export.export

    def capturing(module: nn.Module, *arguments: object, **options: object) -> object:
        captured.append(len(Encoder(module).layers))
        return export(module, *arguments, **options)

    monkeypatch.setattr(torch.export, "export", capturing)
    module = MeanPoolClassifier(AutoModel.from_config(ARCHITECTURES[name])).eval()
    before = torch.get_rng_state()
    check_exportable(module, NAMES, "tiny")
    assert captured == [1]
    assert (len(Encoder(module).layers), module.config.num_hidden_layers) == (4, 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_of_any_other_an_export_of_the_whole_tells(capfd: pytest.CaptureFixture[str]) -> None:
    check_exportable(Plain(), NAMES, "plain")
    with pytest.raises(ExportError, match=r"^branching cannot be exported to ONNX: [^\n]+$"):
        check_exportable(Branching(), NAMES, "branching")
    assert capfd.readouterr() == ("", "")
