"""Writes the report of a generating model: what every variant is worth, how fast and how large it is, and how its
texts read beside PyTorch's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from millis_pipeline.decoders.measure import token_ms
from millis_pipeline.entry import Entry
from millis_pipeline.pages import write_pages
from millis_pipeline.pareto import Mark, draw
from millis_pipeline.report import gate_lines, library_lines, step_lines, title

EXAMPLES = 5


@dataclass(frozen=True)
class DecoderEntry(Entry):
    """A variant as it was made and measured.

    Attributes:
        perplexity: on the evaluation data; None without any.
        texts: after the prompts of the report's examples.
    """

    perplexity: float | None = None
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Original:
    """What the PyTorch model was measured to be.

    Attributes:
        perplexity: on the evaluation data; None without any.
        measured_tokens: whose perplexity was measured.
        prompts: of the examples, as text.
        texts: after them.
        notes: what is to be said about the checkpoint.
    """

    perplexity: float | None
    measured_tokens: int
    prompts: tuple[str, ...]
    texts: tuple[str, ...]
    notes: tuple[str, ...]


def write_decoder_report(
    folder: Path, entries: Sequence[DecoderEntry], original: Original, choice: str, max_loss: float
) -> None:
    """Writes `NAME.md`, `NAME.html` and `NAME.svg`.

    Args:
        folder: to write into.
        entries: all variants that were made.
        original: the PyTorch model.
        choice: why the default variant is the default.
        max_loss: largest loss that the gate allowed.
    """
    manifest = entries[0].manifest
    before = [
        *title(manifest),
        f"Most tokens of prompt and text together: {manifest.max_tokens}.",
        *(line for note in original.notes for line in ("", note)),
        "",
        "## Variants",
        "",
        *_table(entries, original),
        "",
        *gate_lines(entries, max_loss),
        choice,
        "",
        *step_lines(entries),
    ]
    legend = "Time is the median between two tokens of one text. Filled points are published; bars are 95 % intervals."
    after = [legend, "", *_examples(entries, original), *library_lines(manifest)]
    write_pages(folder, manifest.model, "\n".join(before), _picture(entries), "\n".join(after))


def _table(entries: Sequence[DecoderEntry], original: Original) -> list[str]:
    profile = entries[0].manifest.latency
    prompt = profile.points[1].tokens if profile is not None else 0
    columns = ("variant", "version", "agreement (95 % interval)", "perplexity", "between tokens, p50 (p99)", "tokens/s")
    rows = [
        f"| {' | '.join(columns)} | first token after {prompt}, p50 | size | memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    if original.perplexity is not None:
        rows.append(f"| PyTorch | | | {original.perplexity:.3f} | | | | | |")
    for entry in entries:
        manifest = entry.manifest
        assert manifest.latency is not None, "every variant is timed. This is a bug."
        later, first = manifest.latency.points
        name = f"**{manifest.variant}** (default)" if manifest.default_variant else manifest.variant
        perplexity = f"{entry.perplexity:.3f}" if entry.perplexity is not None else "not measured"
        rows.append(
            f"| {name} | {entry.version or 'refused'} | {_interval(entry)} | {perplexity} "
            f"| {later.p50_ms:.2f} ({later.p99_ms:.2f}) ms | {1e3 / later.p50_ms:.0f} | {first.p50_ms:.1f} ms "
            f"| {manifest.size_bytes / 1e6:.1f} MB | {manifest.memory_bytes / 1e6:.0f} MB |"
        )
    quality = entries[0].manifest.quality
    if quality is not None:
        what = f"agreement on {quality.examples} prompts, perplexity on {original.measured_tokens} tokens"
        rows += ["", f"Measured on {quality.dataset}: {what}."]
    rows += [
        "",
        "Agreement is the mean share of PyTorch's most likely tokens that a variant gives before the first other one.",
    ]
    if profile is not None:
        rows.append(f"Times: {profile.engine}, {profile.threads} threads, {profile.machine}, one text at a time.")
    return rows


def _interval(entry: DecoderEntry) -> str:
    quality = entry.manifest.quality
    if quality is None:
        return f"{entry.judgement.agreement:.4f} on {entry.judgement.inputs} built-in texts"
    return f"{quality.value:.4f} ({quality.low:.4f} to {quality.high:.4f})"


def _examples(entries: Sequence[DecoderEntry], original: Original) -> list[str]:
    """Texts side by side, those that are the same told once."""
    lines = [
        "## Examples",
        "",
        "The most likely tokens after prompts of the evaluation data, cut where measuring ends.",
    ]
    for number, (prompt, text) in enumerate(zip(original.prompts, original.texts, strict=True)):
        lines += ["", f"Prompt: {_quoted(prompt)}", "", f"- PyTorch: {_quoted(text)}"]
        for entry in entries:
            own = entry.texts[number]
            lines.append(f"- {entry.manifest.variant}: {'the same' if own == text else _quoted(own)}")
    return [*lines, ""]


def _quoted(text: str) -> str:
    """As code, so that nothing in it is taken for Markdown."""
    return f"`` {' '.join(text.replace('`', chr(39)).split())} ``"


def _picture(entries: Sequence[DecoderEntry]) -> str:
    marks = []
    for entry in entries:
        manifest, quality = entry.manifest, entry.manifest.quality
        value = entry.judgement.value
        low, high = (quality.low, quality.high) if quality else (value, value)
        time = token_ms(manifest.latency) if manifest.latency else 0.0
        marks.append(Mark(manifest.variant, time, manifest.size_bytes / 1e6, value, low, high, not entry.refused))
    return draw(marks, "greedy_agreement")
