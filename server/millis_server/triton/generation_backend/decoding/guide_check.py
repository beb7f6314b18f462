"""Tries a guide before a request with it joins the others.

The pipeline compiles a guide in the middle of a step; one that it cannot compile makes the step fail, and with it all
texts under way, for ever. So the guide is compiled first by another pipeline, which has the same tokenizer and next to
no model, and which is thrown away when it breaks.

This runs in the engine's thread, and all texts wait for it: with a large JSON schema up to 0.4 s were seen. Another
thread would gain nothing, because this pipeline too holds the interpreter lock while it compiles, without which the
engine's thread does not go on. Another process would, for about 120 MB more; the engine's own compiling, nearly as
long, would stay.
"""

from __future__ import annotations

import re
import tempfile
from collections import OrderedDict
from pathlib import Path
from shutil import copy

import numpy as np
import openvino as ov
import openvino_genai as genai
from openvino import opset13 as ops

REMEMBERED = 1024
"""Guides whose result is kept."""

HEAD = 16

PLACE = re.compile(r"^\[[^]]*\] \S+:\d+: (Check failed: .* is false: )?")
"""What the library puts before its messages."""

TOKENIZER_FILES = (
    "openvino_tokenizer.xml",
    "openvino_tokenizer.bin",
    "openvino_detokenizer.xml",
    "openvino_detokenizer.bin",
)


class GuideCheck:
    """Says what is wrong with guides.

    Args:
        folder: of the version, with the tokenizer's files.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizer_folder = folder
        self._vocabulary = _vocabulary(folder)
        self._known: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._pipeline: object | None = None

    def problem(self, guide: tuple[str, str]) -> str:
        """What is wrong with a guide; empty when nothing is.

        Args:
            guide: field of StructuredOutputConfig, and its value.
        """
        if guide not in self._known:
            self._known[guide] = self._try(guide)
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return self._known[guide]

    def _try(self, guide: tuple[str, str]) -> str:
        if self._pipeline is None:
            self._pipeline = self._load()
        config = genai.GenerationConfig(
            eos_token_id=0,
            stop_token_ids={0},
            max_new_tokens=2,
            structured_output_config=genai.StructuredOutputConfig(**{guide[0]: guide[1]}),
        )
        try:
            # Without a hand on it the pipeline takes the caller for gone, and drops the request.
            _handle = self._pipeline.add_request(0, ov.Tensor(np.ones((1, 2), np.int64)), config)  # type: ignore[attr-defined]
            while self._pipeline.has_non_finished_requests():  # type: ignore[attr-defined]
                self._pipeline.step()  # type: ignore[attr-defined]
        except RuntimeError as error:
            self._pipeline = None
            return _reason(error)
        return ""

    def _load(self) -> object:
        scheduler = genai.SchedulerConfig()
        scheduler.num_kv_blocks = 4
        scheduler.max_num_batched_tokens = 32
        with tempfile.TemporaryDirectory() as scratch:
            for name in TOKENIZER_FILES:
                if (self._tokenizer_folder / name).is_file():
                    copy(self._tokenizer_folder / name, scratch)
            ov.save_model(_smallest_model(self._vocabulary), Path(scratch) / "openvino_model.xml")
            return genai.ContinuousBatchingPipeline(scratch, scheduler, "CPU", {"INFERENCE_NUM_THREADS": 1})


def _reason(error: Exception) -> str:
    """The message without the place in the library's source."""
    return PLACE.sub("", " ".join(str(error).split()))


def _vocabulary(folder: Path) -> int:
    """Tokens that the model gives a logit each: the last dimension of its output."""
    model = ov.Core().read_model(folder / "openvino_model.xml")
    return int(model.output("logits").get_partial_shape()[2].get_length())


def _smallest_model(vocabulary: int) -> ov.Model:
    """A language model of one head and no sense, in the form that the pipeline takes."""
    ids, mask, positions = (
        ops.parameter([-1, -1], np.int64, name=name) for name in ("input_ids", "attention_mask", "position_ids")
    )
    beams = ops.parameter([-1], np.int32, name="beam_idx")
    for node in (ids, mask, positions, beams):
        node.output(0).get_tensor().set_names({node.get_friendly_name()})
    batch = ops.gather(ops.shape_of(ids), ops.constant([0]), ops.constant(0))
    vector = ops.unsqueeze(
        ops.gather(ops.constant(np.zeros((vocabulary, HEAD), np.float32)), ids, ops.constant(0)), ops.constant(1)
    )
    heads = []
    assigns = []
    for kind in ("key", "value"):
        shape = ops.concat([batch, ops.constant([1, 0, HEAD])], 0)
        empty = ops.broadcast(ops.constant(np.float32(0)), shape)
        past = ops.read_value(empty, f"past.{kind}", ov.Type.f32, ov.PartialShape([-1, 1, -1, HEAD]))
        whole = ops.concat([ops.gather(past, beams, ops.constant(0)), vector], 2)
        assigns.append(ops.assign(whole, f"past.{kind}"))
        heads.append(whole)
    allowed = ops.unsqueeze(ops.convert(mask, np.float32), ops.constant([1, 2]))
    attended = ops.scaled_dot_product_attention(vector, heads[0], heads[1], allowed)
    flat = ops.squeeze(attended, ops.constant(1))
    logits = ops.matmul(flat, ops.constant(np.zeros((vocabulary, HEAD), np.float32)), False, True)
    logits.output(0).get_tensor().set_names({"logits"})
    return ov.Model([ops.result(logits)], assigns, [ids, mask, positions, beams], "guide_check")
