"""Writes the report of a build: what every variant is worth, how fast it is, how large, and where it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from millis_pipeline.verify import Judgement
from millis_server.manifest import LatencyProfile, Manifest


@dataclass(frozen=True)
class Variant:
    """A variant as it was published."""

    manifest: Manifest
    judgement: Judgement
    version: str


def write_report(path: Path, variants: Sequence[Variant], reference: Judgement, choice: str) -> None:
    """Writes the report of one model as Markdown.

    Args:
        path: file to write.
        variants: what was published.
        reference: what the PyTorch model was measured to be.
        choice: why the default variant is the default.
    """
    manifest = variants[0].manifest
    lines = [
        f"# {manifest.model}",
        "",
        f"Task: {manifest.task}. Made from `{manifest.provenance.checkpoint}`"
        + (f", trained on {manifest.provenance.dataset}" if manifest.provenance.dataset else "")
        + f", {manifest.provenance.created_at}.",
        f"Licence of the weights: {manifest.provenance.license or 'not stated by the source'}.",
        f"Most tokens of one input: {manifest.max_tokens}.",
        "",
        "## Variants",
        "",
        *_variant_table(variants, reference),
        "",
        choice,
        "",
        *_latency_section(variants),
    ]
    if reference.scores is not None:
        lines += ["## PyTorch model, label by label", "", reference.scores.as_markdown(), ""]
    for variant in variants:
        if variant.judgement.scores is not None:
            lines += [
                f"## {variant.manifest.variant}, label by label",
                "",
                variant.judgement.scores.as_markdown(),
                "",
            ]
    lines += ["## Made with", ""]
    lines += [f"- {name} {version}" for name, version in manifest.provenance.versions.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", "utf-8")


def _variant_table(variants: Sequence[Variant], reference: Judgement) -> list[str]:
    quality = variants[0].manifest.quality
    metric = quality.metric if quality else "quality"
    rows = [
        f"| variant | version | {metric} (95 % interval) | agreement | largest difference | p50, 16 tokens | size |",
        "|---|---|---|---|---|---|---|",
    ]
    if reference.quality is not None:
        rows.append(f"| PyTorch | | {_interval(reference)} | | | | |")
    for variant in variants:
        manifest, judgement = variant.manifest, variant.judgement
        name = f"**{manifest.variant}** (default)" if manifest.default_variant else manifest.variant
        rows.append(
            f"| {name} | {variant.version} | {_interval(judgement)} | {judgement.agreement:.4f} "
            f"| {judgement.max_difference:.2g} | {_p50(manifest.latency)} | {manifest.size_bytes / 1e6:.1f} MB |"
        )
    if quality is not None:
        rows += ["", f"Measured on {quality.examples} examples of {quality.dataset}."]
    rows += ["", "Agreement and largest difference are with the PyTorch model, on the same inputs."]
    return rows


def _latency_section(variants: Sequence[Variant]) -> list[str]:
    profile = variants[0].manifest.latency
    if profile is None:
        return []
    names = [variant.manifest.variant for variant in variants]
    rows = [
        "## Latency of the bare engine",
        "",
        f"{profile.engine}, {profile.threads} thread, {profile.machine}; p50 (p99) in milliseconds.",
        "",
        f"| batch | tokens | {' | '.join(names)} |",
        f"|---|---|{'---|' * len(names)}",
    ]
    for index, point in enumerate(profile.points):
        measured = [v.manifest.latency.points[index] for v in variants if v.manifest.latency]
        cells = [f"{same.p50_ms:.2f} ({same.p99_ms:.2f})" for same in measured]
        rows.append(f"| {point.batch} | {point.tokens} | {' | '.join(cells)} |")
    return [*rows, ""]


def _interval(judgement: Judgement) -> str:
    quality = judgement.quality
    return f"{quality.value:.4f} ({quality.low:.4f} to {quality.high:.4f})" if quality else "not measured"


def _p50(profile: LatencyProfile | None) -> str:
    for point in profile.points if profile else ():
        if (point.batch, point.tokens) == (1, 16):
            return f"{point.p50_ms:.2f} ms"
    return ""
