"""Writes the report of a build, as Markdown and as one HTML file: what every variant is worth, how fast it is, how
large, where it comes from, and why some were not published."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from millis_pipeline.entry import Entry
from millis_pipeline.evaluate import LabelScores, Row
from millis_pipeline.latency import single_text_ms
from millis_pipeline.pages import write_pages
from millis_pipeline.pair_scores import MRR, SPEARMAN
from millis_pipeline.pareto import Mark, draw
from millis_pipeline.verify import Judgement
from millis_server.manifest import Exit, LatencyPoint, LatencyProfile, Manifest

EXAMPLES = {SPEARMAN: "pairs", MRR: "queries"}
"""What the examples of a metric are, where that is not plain."""


def write_report(
    folder: Path, name: str, entries: Sequence[Entry], reference: Judgement, choice: str, max_loss: float
) -> None:
    """Writes `NAME.md`, `NAME.html` (everything in one file) and, for the Markdown, `NAME.svg`.

    Args:
        folder: to write into.
        name: logical model name.
        entries: all variants that were made.
        reference: what the PyTorch model was measured to be.
        choice: why the default variant is the default.
        max_loss: largest loss that the gate allowed.
    """
    before = "\n".join(_before_picture(entries, reference, choice, max_loss))
    write_pages(folder, name, before, _picture(entries), "\n".join(_after_picture(entries, reference)))


def _before_picture(entries: Sequence[Entry], reference: Judgement, choice: str, max_loss: float) -> list[str]:
    manifest = entries[0].manifest
    return [
        *title(manifest),
        f"Most tokens of one input: {manifest.max_tokens}.",
        "",
        "## Variants",
        "",
        *_variant_table(entries, reference),
        "",
        *gate_lines(entries, max_loss),
        choice,
        "",
        *step_lines(entries),
        *_exits(entries),
    ]


def title(manifest: Manifest) -> list[str]:
    """What the model is and where it comes from."""
    return [
        f"# {manifest.model}",
        "",
        f"Task: {manifest.task}. Made from `{manifest.provenance.checkpoint}`"
        + (f", trained on {manifest.provenance.dataset}" if manifest.provenance.dataset else "")
        + f", {manifest.provenance.created_at}.",
        f"Licence of the weights: {manifest.provenance.license or 'not stated by the source'}.",
    ]


def _after_picture(entries: Sequence[Entry], reference: Judgement) -> list[str]:
    legend = (
        "Time is the geometric mean of the medians of one text over the lengths below. Filled points are published; "
        "bars are 95 % intervals; the dashed line joins the published variants that no other one beats in both."
    )
    return [
        legend,
        "",
        *_latency_section(entries),
        *_labels(entries, reference),
        *library_lines(entries[0].manifest),
    ]


def library_lines(manifest: Manifest) -> list[str]:
    """The libraries that made it."""
    return ["## Made with", "", *(f"- {name} {version}" for name, version in manifest.provenance.versions.items())]


def _variant_table(entries: Sequence[Entry], reference: Judgement) -> list[str]:
    quality = entries[0].manifest.quality
    metric = quality.metric if quality else "quality"
    columns = ("variant", "version", f"{metric} (95 % interval)", "agreement", "largest difference", "one text")
    rows = [
        f"| {' | '.join(columns)} | p50, 16 tokens | size | memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    if reference.score is not None:
        rows.append(f"| PyTorch | | {_interval(reference)} | | | | | | |")
    for entry in entries:
        manifest, judgement = entry.manifest, entry.judgement
        name = f"**{manifest.variant}** (default)" if manifest.default_variant else manifest.variant
        time = f"{single_text_ms(manifest.latency):.2f} ms" if manifest.latency else ""
        size, memory = manifest.size_bytes / 1e6, manifest.memory_bytes / 1e6
        rows.append(
            f"| {name} | {entry.version or 'refused'} | {_interval(judgement)} | {_agreement(judgement)} "
            f"| {judgement.max_difference:.2g} | {time} | {_p50(manifest.latency)} | {size:.1f} MB | {memory:.0f} MB |"
        )
    if quality is not None:
        rows += ["", f"Measured on {quality.examples} {EXAMPLES.get(quality.metric, 'examples')} of {quality.dataset}."]
    if any(entry.judgement.value < 0 for entry in entries):
        rows += ["", "The manifest of a variant tells a correlation below 0 as 0."]
    rows += ["", "Agreement and largest difference are with the PyTorch model, on the same inputs."]
    return rows


def gate_lines(entries: Sequence[Entry], max_loss: float) -> list[str]:
    """What the gate demanded, and what it refused."""
    refused = [f"- {entry.manifest.variant}: {entry.refused}." for entry in entries if entry.refused]
    listed = ["Not published:", "", *refused, ""] if refused else []
    said = f"The gate: a loss of at most {max_loss:g}, and faster than every variant that is at least as good."
    if entries[0].manifest.quality is None:
        said = (
            "Quality was not measured, for there was no evaluation data: agreement with PyTorch on "
            f"{entries[0].judgement.inputs} built-in texts does not prove it. The gate went by agreement: faster than "
            "every variant that agrees at least as much."
        )
    return [said, "", *(listed or ["All variants passed.", ""])]


def step_lines(entries: Sequence[Entry]) -> list[str]:
    """How each variant was made."""
    steps = [(entry.manifest.variant, "; then ".join(entry.manifest.provenance.steps)) for entry in entries]
    return ["## How they were made", "", *(f"- {name}: {how or 'exported'}" for name, how in steps), ""]


def _exits(entries: Sequence[Entry]) -> list[str]:
    """Where the evaluation data left the variants that can be left early."""
    rows = [
        f"| {entry.manifest.variant} | {exit.layers} | {_threshold(exit)} | {100 * exit.share:.1f} % |"
        for entry in entries
        for exit in entry.manifest.exits
    ]
    if not rows:
        return []
    head = [
        "| variant | after layer | with a confidence of at least | texts of the evaluation data |",
        "|---|---|---|---|",
    ]
    return ["## Early exits", "", *head, *rows, ""]


def _threshold(exit: Exit) -> str:
    return "all that come so far" if exit.threshold is None else f"{exit.threshold:.3f}"


def _latency_section(entries: Sequence[Entry]) -> list[str]:
    profile = entries[0].manifest.latency
    if profile is None:
        return []
    engines = {entry.manifest.latency.engine for entry in entries if entry.manifest.latency}
    where = f"{profile.threads} thread, {profile.machine}"
    if len(engines) == 1:
        where = f"{profile.engine}, {where}"
    exits = (
        " With early exits p50 is the mean over the evaluation data, each graph counted as often as it is reached, and "
        "p99 is that of a text that goes all the way."
    )
    rows = [
        "## Latency of the bare engine",
        "",
        f"{where}; p50 (p99) in milliseconds; variants measured in turn, in rounds."
        + (exits if any(entry.manifest.exits for entry in entries) else ""),
        "",
        *_by_size(
            [_measured_with(entry.manifest, engines) for entry in entries],
            entries,
            lambda point: f"{point.p50_ms:.2f} ({point.p99_ms:.2f})",
        ),
        "",
    ]
    return [*rows, *_memory_section(entries, profile)]


def _memory_section(entries: Sequence[Entry], profile: LatencyProfile) -> list[str]:
    """Memory by batch and length; empty where it was not measured."""
    if not any(point.memory_bytes for point in profile.points):
        return []
    names = [entry.manifest.variant for entry in entries]
    return [
        "## Memory of the loaded graphs",
        "",
        "Resident, in MB, after a call of this size and all smaller ones; weights included, the engine's library not.",
        "",
        *_by_size(names, entries, lambda point: f"{point.memory_bytes / 1e6:.0f}"),
        "",
    ]


def _by_size(names: Sequence[str], entries: Sequence[Entry], cell: Callable[[LatencyPoint], str]) -> list[str]:
    """A table with a row for each batch and length that was measured, and a column for each variant."""
    profiles = [entry.manifest.latency.points for entry in entries if entry.manifest.latency]
    rows = [
        f"| {same[0].batch} | {same[0].tokens} | {' | '.join(map(cell, same))} |"
        for same in zip(*profiles, strict=True)
    ]
    return [f"| batch | tokens | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}", *rows]


def _measured_with(manifest: Manifest, engines: Collection[str]) -> str:
    """Name of a variant, with the engine that it was measured with where others had another one."""
    if len(engines) == 1 or manifest.latency is None:
        return manifest.variant
    return f"{manifest.variant} ({manifest.latency.engine})"


def _labels(entries: Sequence[Entry], reference: Judgement) -> list[str]:
    """The classification report of the teacher and of every variant, side by side."""
    given = [("PyTorch", reference.score), *((entry.manifest.variant, entry.judgement.score) for entry in entries)]
    columns = [(name, score) for name, score in given if isinstance(score, LabelScores)]
    if not columns:
        return []
    rows = [
        "## Label by label",
        "",
        "Precision / recall / F1.",
        "",
        f"| label | support | {' | '.join(name for name, _ in columns)} |",
        f"|---|---|{'---|' * len(columns)}",
    ]
    found = [{row.name: row for row in (*scores.per_label, *scores.averages)} for _, scores in columns]
    for row in (*columns[0][1].per_label, *columns[0][1].averages):
        cells = [_prf(scores.get(row.name)) for scores in found]
        name = row.name.replace("|", "\\|")
        rows.append(f"| {name} | {row.support} | {' | '.join(cells)} |")
    return [*rows, ""]


def _prf(row: Row | None) -> str:
    return f"{row.precision:.3f} / {row.recall:.3f} / {row.f1:.3f}" if row else ""


def _picture(entries: Sequence[Entry]) -> str:
    marks = []
    for entry in entries:
        manifest, judgement = entry.manifest, entry.judgement
        time = single_text_ms(manifest.latency) if manifest.latency else 0.0
        score = judgement.score
        low, high = (score.low, score.high) if score else (judgement.value, judgement.value)
        size = manifest.size_bytes / 1e6
        marks.append(Mark(manifest.variant, time, size, judgement.value, low, high, not entry.refused))
    return draw(marks, entries[0].manifest.quality.metric if entries[0].manifest.quality else "agreement")


def _interval(judgement: Judgement) -> str:
    score = judgement.score
    return f"{score.value:.4f} ({score.low:.4f} to {score.high:.4f})" if score else "not measured"


def _agreement(judgement: Judgement) -> str:
    """With what it was seen on where there is no quality beside it."""
    return f"{judgement.agreement:.4f}" + ("" if judgement.score else f" on {judgement.inputs} built-in texts")


def _p50(profile: LatencyProfile | None) -> str:
    for point in profile.points if profile else ():
        if (point.batch, point.tokens) == (1, 16):
            return f"{point.p50_ms:.2f} ms"
    return ""
