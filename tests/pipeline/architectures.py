"""Tiny configurations, four layers deep, of every architecture that can be compressed."""

from transformers import BertConfig, DistilBertConfig, PreTrainedConfig, RobertaConfig

LABELS = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
WIDE = {"vocab_size": 300, "pad_token_id": 0, "initializer_range": 0.3, **LABELS}
SIZE = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
ARCHITECTURES: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(**SIZE, **WIDE, max_position_embeddings=64),
    "roberta": RobertaConfig(**SIZE, **WIDE, max_position_embeddings=66, type_vocab_size=1),
    "distilbert": DistilBertConfig(dim=32, n_layers=4, n_heads=4, hidden_dim=128, **WIDE, max_position_embeddings=64),
}
