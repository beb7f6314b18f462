"""A text classifier with mean pooling: the masked mean of the last hidden states, dropout, one linear layer.

Sentence embedding models such as all-MiniLM-L6-v2 were trained with mean pooling (Reimers and Gurevych 2019); the
`[CLS]` head of transformers starts from a vector that they never trained.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel

MARKER_FILE = "millis_head.json"
HEAD_FILE = "head.safetensors"
DROPOUT = 0.1


class MeanPoolClassifier(nn.Module):  # type: ignore[misc]  # torch is not followed: its types cost mypy minutes
    """Backbone, mean pooling and a linear head.

    Args:
        backbone: a transformers encoder without a head; its config carries id2label and problem_type.
    """

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = backbone.config
        self.dropout = nn.Dropout(DROPOUT)
        self.head = nn.Linear(self.config.hidden_size, self.config.num_labels)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits [texts, labels] of INT64 [texts, tokens], or of embedded tokens [texts, tokens, hidden size]."""
        pooled = self.pooled(input_ids, attention_mask, token_type_ids, inputs_embeds)
        logits: torch.Tensor = self.head(self.dropout(pooled))
        return logits

    def pooled(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mean of the last hidden states [texts, hidden size], padding left out."""
        given = {"input_ids": input_ids, "token_type_ids": token_type_ids, "inputs_embeds": inputs_embeds}
        named = {name: tensor for name, tensor in given.items() if tensor is not None}
        return masked_mean(self.backbone(attention_mask=attention_mask, **named).last_hidden_state, attention_mask)

    def save(self, folder: Path) -> None:
        """Writes an ordinary checkpoint folder, with the head beside the backbone."""
        self.backbone.save_pretrained(folder)
        save_file({name: tensor.contiguous() for name, tensor in self.head.state_dict().items()}, folder / HEAD_FILE)
        (folder / MARKER_FILE).write_text(json.dumps({"pooling": "mean", "head": HEAD_FILE}) + "\n", "utf-8")

    @classmethod
    def load(cls, folder: Path) -> MeanPoolClassifier:
        """Reads what `save` wrote."""
        config = AutoConfig.from_pretrained(folder)
        classifier = cls(AutoModel.from_pretrained(folder, config=config))
        classifier.head.load_state_dict(load_file(folder / HEAD_FILE))
        return classifier


def masked_mean(hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Mean over the tokens of hidden states [texts, tokens, hidden size], padding left out: [texts, hidden size]."""
    mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
    mean: torch.Tensor = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
    return mean
