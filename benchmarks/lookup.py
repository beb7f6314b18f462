"""What prompt lookup gains on grounded answers, which repeat much of the text they are grounded in.

    python -m benchmarks.lookup --repository model_repository --model assistant

Both sides are the backend's engine in a process of its own, with and without prompt lookup (Saxena 2023, "Prompt
Lookup Decoding"), on the same grounded dialogues. The tokens ought to be the same, and how many texts are is counted:
checking several guesses in one step rounds otherwise than making one token, which decides where two are as likely.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from benchmarks.generation_sides import BareEngine, Timed
from millis_pipeline.latency import machine
from millis_server.chat import ChatTemplates
from millis_server.manifest import TOKENIZER_FILE, Manifest
from millis_server.manifest_files import read_manifest

DIALOGUES = Path("pipeline/recipes/assistant/test.jsonl")
GUESSED = (0, 2, 4, 8)
TOKENS = 48


def grounded_prompts(folder: Path, manifest: Manifest, dialogues: Path) -> list[list[int]]:
    """Prompts of the dialogues that carry a text to answer from, up to where the answer begins."""
    generation = manifest.generation
    assert generation is not None, "the model generates"
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    templates = ChatTemplates()
    found = []
    for line in dialogues.read_text("utf-8").splitlines():
        messages = json.loads(line)["messages"]
        if messages[0]["role"] == "system":
            text = templates.render(generation.chat_template, messages[:2], generation.special_tokens)
            found.append(tokenizer.encode(text, add_special_tokens=False).ids)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--model", default="assistant")
    parser.add_argument("--variant", default="int8")
    parser.add_argument("--dialogues", type=Path, default=DIALOGUES)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    versions = (arguments.repository / f"{arguments.model}-{arguments.variant}").glob("[0-9]*")
    folder = max(versions, key=lambda path: int(path.name))
    manifest = read_manifest(folder)
    prompts = grounded_prompts(folder, manifest, arguments.dialogues)
    engines = {
        guessed: BareEngine(folder, eos=manifest.generation.eos_ids, prompt_lookup=guessed) for guessed in GUESSED
    }
    found = {guessed: Timed() for guessed in GUESSED}
    for number in range(arguments.rounds + 1):
        for guessed, engine in engines.items():
            for prompt in prompts:
                timed = engine.ask([prompt], TOKENS)
                if number:
                    found[guessed].merge(timed)
    for engine in engines.values():
        engine.close()
    print(f"Machine: {machine()}; Python {sys.version.split()[0]}; openvino-genai {version('openvino-genai')}\n")
    length = np.mean([len(prompt) for prompt in prompts])
    print(
        f"{arguments.model} {arguments.variant}, {len(prompts)} grounded prompts of {length:.0f} "
        f"tokens on average, {TOKENS} tokens each, 1 caller, {arguments.rounds} rounds\n"
    )
    print("| tokens guessed | tokens/s | of none guessed | same texts |\n|---|---|---|---|")
    plain = found[0].tokens / found[0].wall
    for guessed, timed in found.items():
        rate = timed.tokens / timed.wall
        same = sum(ours == theirs for ours, theirs in zip(timed.texts, found[0].texts, strict=True))
        print(f"| {guessed} | {rate:.0f} | {rate / plain:.2f} times | {same} of {len(timed.texts)} |")


if __name__ == "__main__":
    main()
