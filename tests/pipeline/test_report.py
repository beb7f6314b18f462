"""The report's three files, for a model with a published and a refused variant."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

from millis_pipeline.entry import Entry
from millis_pipeline.evaluate import Score, classification_scores
from millis_pipeline.report import gate_lines, write_report
from millis_pipeline.verify import Judgement
from millis_server.manifest import LatencyPoint, LatencyProfile, Manifest, Provenance, Quality, SelfCheck

GOLD = [["a"], ["b"], ["a|b"], ["b"]]


def entry(
    variant: str, p50: float, predicted: list[list[str]], refused: str = "", steps: tuple[str, ...] = ()
) -> Entry:
    scores = classification_scores(GOLD, predicted, ("a", "a|b", "b"), multi_label=False)
    quality = Quality(
        metric="accuracy", value=scores.value, low=scores.low, high=scores.high, examples=4, dataset="four texts"
    )
    manifest = Manifest(
        model="tiny",
        variant=variant,
        task="text-classification",
        labels=("a", "a|b", "b"),
        max_tokens=64,
        inputs=("input_ids", "attention_mask"),
        default_variant=variant == "fp32",
        files={"model.onnx": "0", "tokenizer.json": "0"},
        size_bytes=2_000_000,
        memory_bytes=5_000_000,
        quality=quality,
        latency=LatencyProfile(
            machine="a machine",
            engine="an engine",
            threads=1,
            points=(LatencyPoint(batch=1, tokens=16, p50_ms=p50, p99_ms=2 * p50, memory_bytes=6_000_000),),
        ),
        provenance=Provenance(checkpoint="x", created_at="2026-01-01T00:00:00+00:00", steps=steps),
        self_check=(SelfCheck(text="a", expected=(0.0,)),),
    )
    return Entry(manifest, Judgement(quality, scores, 0.75, 0.5, 4), refused, "" if refused else "3")


def written(folder: Path) -> dict[str, str]:
    good = entry("fp32", 4.0, GOLD)
    bad = entry("small", 1.0, [["a"], ["b"], ["a"], ["b"]], "it loses 0.2500", ("distilled", "int8"))
    write_report(folder, "tiny", [good, bad], good.judgement, "The default variant is fp32: why.", 0.01)
    return {path.name: path.read_text("utf-8") for path in folder.iterdir()}


def test_the_report_says_what_is_published_and_why_not(tmp_path: Path) -> None:
    files = written(tmp_path / "reports")
    assert sorted(files) == ["tiny.html", "tiny.md", "tiny.svg"]
    lines = files["tiny.md"].splitlines()
    assert (
        "| **fp32** (default) | 3 | 1.0000 (0.5101 to 1.0000) | 0.7500 | 0.5 | 4.00 ms | 4.00 ms | 2.0 MB | 5 MB |"
        in lines
    )
    assert "| small | refused | 0.7500 (0.3006 to 0.9544) | 0.7500 | 0.5 | 1.00 ms | 1.00 ms | 2.0 MB | 5 MB |" in lines
    assert "- small: it loses 0.2500." in lines
    assert "- small: distilled; then int8" in lines
    memory = lines.index("## Memory of the loaded graphs")
    assert lines[memory + 4 : memory + 7] == [
        "| batch | tokens | fp32 | small |",
        "|---|---|---|---|",
        "| 1 | 16 | 6 | 6 |",
    ]
    assert "| label | support | PyTorch | fp32 | small |" in lines
    assert r"| a\|b | 1 | 1.000 / 1.000 / 1.000 | 1.000 / 1.000 / 1.000 | 0.000 / 0.000 / 0.000 |" in lines


def test_each_variant_names_its_engine_where_they_differ(tmp_path: Path) -> None:
    plain, other = entry("fp32", 4.0, GOLD), entry("bf16", 2.0, GOLD)
    assert other.manifest.latency is not None
    latency = other.manifest.latency.model_copy(update={"engine": "another engine"})
    other = replace(other, manifest=other.manifest.model_copy(update={"latency": latency}))
    write_report(tmp_path, "tiny", [plain, plain], plain.judgement, "", 0.01)
    lines = (tmp_path / "tiny.md").read_text("utf-8").splitlines()
    assert "an engine, 1 thread, a machine; p50 (p99) in milliseconds; variants measured in turn, in rounds." in lines
    assert "| batch | tokens | fp32 | fp32 |" in lines
    write_report(tmp_path, "tiny", [plain, other], plain.judgement, "", 0.01)
    lines = (tmp_path / "tiny.md").read_text("utf-8").splitlines()
    assert "1 thread, a machine; p50 (p99) in milliseconds; variants measured in turn, in rounds." in lines
    assert "| batch | tokens | fp32 (an engine) | bf16 (another engine) |" in lines


def test_without_evaluation_data_the_report_says_what_was_seen_and_that_it_is_no_quality(tmp_path: Path) -> None:
    without = [
        replace(
            one,
            manifest=one.manifest.model_copy(update={"quality": None}),
            judgement=Judgement(None, None, 0.75, 0.5, 6),
        )
        for one in (entry("fp32", 4.0, GOLD), entry("exits", 1.0, GOLD, "its exits do not pay"))
    ]
    said = (
        "Quality was not measured, for there was no evaluation data: agreement with PyTorch on 6 built-in texts does "
        "not prove it. The gate went by agreement: faster than every variant that agrees at least as much."
    )
    assert gate_lines(without[:1], 0.01) == [said, "", "All variants passed.", ""]
    refused = ["Not published:", "", "- exits: its exits do not pay.", ""]
    assert gate_lines(without, 0.01) == [said, "", *refused]
    write_report(tmp_path, "tiny", without, without[0].judgement, "", 0.01)
    lines = (tmp_path / "tiny.md").read_text("utf-8").splitlines()
    table = lines.index("## Variants") + 2
    seen = "not measured | 0.7500 on 6 built-in texts | 0.5"
    head = "| variant | version | quality (95 % interval) | agreement | largest difference | one text | p50, 16 tokens "
    assert lines[table : table + 4] == [
        f"{head}| size | memory |",
        "|---|---|---|---|---|---|---|---|---|",
        f"| **fp32** (default) | 3 | {seen} | 4.00 ms | 4.00 ms | 2.0 MB | 5 MB |",
        f"| exits | refused | {seen} | 1.00 ms | 1.00 ms | 2.0 MB | 5 MB |",
    ]
    assert "## Label by label" not in lines


def test_a_correlation_below_0_is_told_as_it_is(tmp_path: Path) -> None:
    quality = Quality(metric="spearman", value=0.0, low=0.0, high=0.05, examples=9, dataset="nine pairs")
    good = entry("fp32", 4.0, GOLD)
    bad = replace(good, judgement=Judgement(quality, Score("spearman", -0.5, -0.9, 0.05, 9), 0.75, 0.5, 18))
    bad = replace(bad, manifest=bad.manifest.model_copy(update={"quality": quality}))
    write_report(tmp_path, "tiny", [bad], bad.judgement, "", 0.01)
    lines = (tmp_path / "tiny.md").read_text("utf-8").splitlines()
    assert "| PyTorch | | -0.5000 (-0.9000 to 0.0500) | | | | | | |" in lines
    assert "Measured on 9 pairs of nine pairs." in lines
    assert "The manifest of a variant tells a correlation below 0 as 0." in lines
    write_report(tmp_path, "tiny", [good], good.judgement, "", 0.01)
    assert "The manifest of a variant" not in (tmp_path / "tiny.md").read_text("utf-8")


def test_the_picture_is_well_formed_and_inside_the_page(tmp_path: Path) -> None:
    files = written(tmp_path)
    root = ElementTree.fromstring(files["tiny.svg"])  # noqa: S314  # it was written a line ago
    names = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert [names.count("fp32"), names.count("small")] == [2, 2]
    fills = [point.get("fill") for point in root.iter("{http://www.w3.org/2000/svg}circle")]
    assert fills == ["#1b7f4b", "white"] * 2
    page = files["tiny.html"]
    assert files["tiny.svg"] in page
    assert page.count("<table>") == 4
    assert "src=" not in page
