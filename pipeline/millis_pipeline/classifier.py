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
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits [texts, labels] of INT64 [texts, tokens]."""
        logits: torch.Tensor = self.head(self.dropout(self.pooled(input_ids, attention_mask, token_type_ids)))
        return logits

    def pooled(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Mean of the last hidden states [texts, hidden size], padding left out."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean: torch.Tensor = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        return mean

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
