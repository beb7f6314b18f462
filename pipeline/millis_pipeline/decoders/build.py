"""`millis build` for text-generation: from a checkpoint, or from texts, to published and measured variants.

Stages: data, train, the candidates (drop layers, distill, convert to OpenVINO, compress), verify and measure, gate,
publish, report.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from millis_pipeline.checkpoint import CheckpointError
from millis_pipeline.decoders.candidates import DecoderCandidate, DecoderMaker
from millis_pipeline.decoders.checkpoint import Decoder, load_decoder
from millis_pipeline.decoders.convert import check_attention
from millis_pipeline.decoders.engine import STREAMS, Engine
from millis_pipeline.decoders.measure import (
    Agreement,
    agreement,
    check_exact,
    greedy_checks,
    own_greedy,
    speeds,
    token_ms,
    variant_perplexity,
)
from millis_pipeline.decoders.memory import generating_bytes
from millis_pipeline.decoders.recipe import DecoderRecipe, check_layers
from millis_pipeline.decoders.reference import Evaluation, evaluation_of
from millis_pipeline.decoders.report import EXAMPLES, DecoderEntry, Original, write_decoder_report
from millis_pipeline.decoders.train import new_model, split_documents, train
from millis_pipeline.gate import Decision, Measured, decide, decide_unmeasured
from millis_pipeline.libraries import versions_of
from millis_pipeline.progress import step
from millis_pipeline.publish import publish, staging, write_version
from millis_pipeline.side_by_side import Alone, in_turn
from millis_pipeline.sources import resolve
from millis_pipeline.verify import Judgement
from millis_server.manifest import Generation, GreedyCheck, LatencyProfile, Manifest, Provenance
from millis_server.manifest_files import sha256

LIBRARIES = ("torch", "transformers", "tokenizers", "openvino", "openvino-genai", "openvino-tokenizers", "nncf")
DEFAULT_CACHE_TOKENS = 32_768
"""Most tokens that the engine gets memory for when the recipe does not say."""


@dataclass(frozen=True)
class Assessed:
    """A candidate with what was measured."""

    candidate: DecoderCandidate
    agreement: Agreement
    perplexity: float | None
    latency: LatencyProfile
    memory_bytes: int
    checks: tuple[GreedyCheck, ...]

    def for_gate(self) -> Measured:
        """What the gate decides by: PyTorch agrees with itself fully."""
        value = self.agreement.value
        variant = self.candidate.variant
        return Measured(variant.name, value, 1 - value, token_ms(self.latency), variant.plain)


@dataclass(frozen=True)
class Limits:
    """What is served at once.

    Attributes:
        tokens: of prompt and text together.
        cache_tokens: of all prompts and texts under way.
        notes: what the report must say about them.
    """

    tokens: int
    cache_tokens: int
    notes: tuple[str, ...]


def build(
    recipe: DecoderRecipe, repository: Path, reports: Path, keep: Path | None = None, alone: Alone = in_turn
) -> None:
    """Builds and publishes one model; the repository changes only in the last stage."""
    began = time.monotonic()
    say = partial(_say, recipe.name)
    _check_devices(recipe)
    with staging(repository) as stage, tempfile.TemporaryDirectory(prefix="millis-") as scratch:
        decoder, training = _decoder(recipe, Path(scratch), keep)
        limits = _limits(recipe, decoder)
        say("asking PyTorch for what variants are compared with")
        evaluation = evaluation_of(decoder, recipe.test, recipe.dataset or recipe.name)
        maker = DecoderMaker(decoder, recipe, stage, say)
        candidates = [maker.make(variant) for variant in recipe.variants]
        if maker.unguided:
            say(f"guided output is not possible: its tokenizer cannot be converted: {maker.unguided}")
        say(f"verifying and measuring {len(candidates)} variants on {len(evaluation.greedy)} prompts")
        assessed = _assess(candidates, decoder, evaluation, limits, alone)
        decision = _decide(recipe, assessed, evaluation)
        checked = tqdm(assessed, desc="manifests", unit="variant", leave=False, disable=None)
        entries = [_entry(recipe, decoder, training, limits, evaluation, one, decision) for one in checked]
        folders = {one.candidate.name: one.candidate.folder for one in assessed}
        staged = [(folders[entry.manifest.variant], entry.manifest) for entry in entries if not entry.refused]
        for path, manifest in staged:
            write_version(path, manifest)
        versions, retired = publish(repository, staged)
    entries = [replace(entry, version=versions.get(entry.manifest.triton_model, "")) for entry in entries]
    choice = f"The default variant is {decision.default}: {decision.why}."
    original = _original(decoder, evaluation, limits, maker.unguided)
    write_decoder_report(reports, entries, original, choice, recipe.max_quality_loss)
    _summarise(recipe, entries, retired)
    say(f"{choice} {time.monotonic() - began:.0f} s; report in {reports / recipe.name}.md and .html")


def _decoder(recipe: DecoderRecipe, scratch: Path, keep: Path | None) -> tuple[Decoder, tuple[str, ...]]:
    """The model, trained when the recipe says so, and how, in words."""
    output = scratch / "checkpoint"
    if recipe.architecture is not None:
        documents, _ = split_documents(recipe)
        model, tokenizer = new_model(recipe, documents)
        weights = sum(parameter.numel() for parameter in model.parameters())
        _say(recipe.name, f"training {weights / 1e6:.2f} million weights on {recipe.dataset or recipe.name}")
        said = train(recipe, model, tokenizer, recipe.architecture.context, output)
        said = f"{weights / 1e6:.2f} million weights {said}"
    else:
        with step("loading"):
            decoder = load_decoder(recipe.source, resolve(recipe.source), graph=recipe.becomes_graphs)
        _check(recipe, decoder)
        if recipe.train is None:
            return decoder, ()
        _say(recipe.name, f"fine-tuning on {recipe.dataset or recipe.name}")
        decoder.model.requires_grad_(True)
        said = train(recipe, decoder.model, decoder.tokenizer, min(decoder.context, recipe.batch_tokens), output)
    _say(recipe.name, said)
    if keep is not None:
        shutil.copytree(output, keep / recipe.name, dirs_exist_ok=True)
    with step("loading"):
        return load_decoder(recipe.source, output, graph=recipe.becomes_graphs), (said,)


def _check_devices(recipe: DecoderRecipe) -> None:
    for variant in recipe.variants:
        if variant.device == "cuda" and not torch.cuda.is_available():
            raise CheckpointError(
                f"variants: {variant.name}: device: PyTorch finds no CUDA device here, and what cannot be measured is "
                "not published"
            )


def _check(recipe: DecoderRecipe, decoder: Decoder) -> None:
    """Refuses what cannot come to anything before minutes are spent."""
    check_attention(decoder.model, recipe.becomes_graphs)
    for variant in recipe.variants:
        try:
            check_layers(variant, decoder.depth)
        except ValueError as error:
            raise CheckpointError(f"checkpoint {recipe.source}: {error}") from error


def _limits(recipe: DecoderRecipe, decoder: Decoder) -> Limits:
    context = decoder.context
    cache = recipe.cache_tokens or min(recipe.max_streams * context, DEFAULT_CACHE_TOKENS)
    if cache >= context:
        return Limits(context, cache, decoder.notes)
    note = f"The model reads {context} tokens; the engine gets memory for {cache} (cache_tokens), which is the limit."
    return Limits(cache, cache, (*decoder.notes, note))


def _assess(
    candidates: Sequence[DecoderCandidate], decoder: Decoder, evaluation: Evaluation, limits: Limits, alone: Alone
) -> list[Assessed]:
    """Measures all candidates: exactness of fp32, agreement, perplexity, latency side by side, memory."""
    greedy, eos = evaluation.greedy, decoder.eos_ids
    room = max(STREAMS * max(len(one.prompt) + 2 * len(one.tokens) for one in greedy), limits.tokens)
    with ExitStack() as stack:
        engines: dict[str, Engine] = {}
        found: dict[str, Agreement] = {}
        for candidate in candidates:
            with step("loading"):
                engine = engines[candidate.name] = Engine(candidate.folder, candidate.setup, room)
            stack.callback(engine.close)
            found[candidate.name] = agreement(engine, greedy, eos)
            if candidate.variant.weights == "fp32":
                whole = candidate.variant.keep_layers is None
                own = greedy if whole else own_greedy(candidate.model, greedy, eos)
                exact = found[candidate.name] if whole else agreement(engine, own, eos)
                check_exact(exact, candidate.model, own, candidate.name)
        checks = {name: greedy_checks(engine, greedy, eos) for name, engine in engines.items()}
        alone()
        latency = speeds(engines, [one.prompt for one in greedy], limits.tokens)
    return [
        Assessed(
            candidate,
            found[candidate.name],
            variant_perplexity(candidate.folder, candidate.model, evaluation, candidate.name),
            latency[candidate.name],
            generating_bytes(candidate.folder, candidate.setup, limits.cache_tokens),
            checks[candidate.name],
        )
        for candidate in candidates
    ]


def _decide(recipe: DecoderRecipe, assessed: Sequence[Assessed], evaluation: Evaluation) -> Decision:
    """The gate; without data to measure quality on it goes by the agreement that was seen."""
    measured = [one.for_gate() for one in assessed]
    if not evaluation.name:
        return decide_unmeasured(measured, recipe.max_quality_loss)
    return decide(measured, recipe.max_quality_loss)


def _entry(
    recipe: DecoderRecipe,
    decoder: Decoder,
    training: tuple[str, ...],
    limits: Limits,
    evaluation: Evaluation,
    one: Assessed,
    decision: Decision,
) -> DecoderEntry:
    candidate = one.candidate
    quality = one.agreement.quality(evaluation.name) if evaluation.name else None
    steps = (*training, *candidate.steps)
    if one.perplexity is not None and evaluation.perplexity is not None:
        steps = (*steps, f"perplexity {one.perplexity:.3f}, PyTorch's {evaluation.perplexity:.3f}")
    generation = Generation(
        engine=candidate.setup.engine,
        device=candidate.setup.device,
        kv_cache_precision=candidate.setup.kv_precision,
        draft=candidate.setup.draft,
        weights=candidate.weights,
        vocabulary=decoder.vocabulary,
        chat_template=decoder.chat_template,
        special_tokens=decoder.special_tokens,
        eos_ids=decoder.eos_ids,
        default_max_tokens=min(recipe.default_max_tokens, limits.tokens),
        max_streams=recipe.max_streams,
        cache_tokens=limits.cache_tokens,
        guided=candidate.guided,
        checks=one.checks,
    )
    manifest = Manifest(
        model=recipe.name,
        variant=candidate.name,
        task="text-generation",
        max_tokens=limits.tokens,
        pad_id=decoder.pad_id,
        default_variant=candidate.name == decision.default,
        default_for_task=recipe.default,
        files={name: sha256(path) for name, path in candidate.files.items()},
        size_bytes=sum((candidate.folder / name).stat().st_size for name in candidate.weights),
        memory_bytes=max(one.memory_bytes, 0),
        quality=quality,
        latency=one.latency,
        provenance=Provenance(
            checkpoint=recipe.source,
            dataset=(recipe.dataset or recipe.name) if recipe.train is not None else "",
            recipe=recipe.digest,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            steps=steps,
            versions=versions_of(LIBRARIES),
            license=recipe.license or decoder.license,
        ),
        generation=generation,
    )
    judgement = Judgement(quality, None, one.agreement.value, 0.0, len(evaluation.greedy))
    texts = tuple(decoder.tokenizer.decode(text, skip_special_tokens=True) for text in one.agreement.texts[:EXAMPLES])
    refused = decision.refused.get(candidate.name, "")
    return DecoderEntry(manifest, judgement, refused=refused, perplexity=one.perplexity, texts=texts)


def _original(decoder: Decoder, evaluation: Evaluation, limits: Limits, unguided: str) -> Original:
    shown = evaluation.greedy[:EXAMPLES]
    decode = decoder.tokenizer.decode
    notes = limits.notes
    if unguided:
        notes = (*notes, f"Guided output is not possible: OpenVINO cannot convert the tokenizer ({unguided}).")
    return Original(
        perplexity=evaluation.perplexity,
        measured_tokens=sum(sum(window.written[1:]) for window in evaluation.windows),
        prompts=tuple(decode(one.prompt, skip_special_tokens=False) for one in shown),
        texts=tuple(decode(one.tokens, skip_special_tokens=True) for one in shown),
        notes=notes,
    )


def _summarise(recipe: DecoderRecipe, entries: Sequence[DecoderEntry], retired: Sequence[str]) -> None:
    for entry in entries:
        manifest = entry.manifest
        assert manifest.latency is not None, "every variant is timed. This is a bug."
        measured = f"agreement {entry.judgement.agreement:.4f}, "
        measured += f"perplexity {entry.perplexity:.3f}, " if entry.perplexity is not None else ""
        measured += f"{token_ms(manifest.latency):.2f} ms between tokens, {manifest.size_bytes / 1e6:.1f} MB"
        if entry.refused:
            _say(recipe.name, f"did not publish {manifest.variant}: {entry.refused}; {measured}")
        else:
            _say(recipe.name, f"published {manifest.variant} version {entry.version}: {measured}")
    for folder in retired:
        _say(recipe.name, f"moved {folder} to .retired: this build does not have it")


def _say(name: str, message: str) -> None:
    print(f"{name}: {message}", flush=True)
