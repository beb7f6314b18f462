"""Writes a model repository entry for a language model on the engines of the full Triton container.

    .venv/bin/python deploy/triton/make_entry.py --protocol vllm --checkpoint Qwen/Qwen2.5-7B-Instruct \
        --tokenizer qwen/tokenizer.json --name chat --max-tokens 8192 --repository gpu_repository

The weights stay where the engine finds them. What the gateway needs of the checkpoint it reads beside tokenizer.json:
the tokens that end a text, and the chat template. README.md in this folder says how the entry is served.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from tokenizers import Tokenizer

from millis_pipeline.publish import CONFIG_FILE, PublishError, staging, triton_config, write_version
from millis_server.manifest import TOKENIZER_FILE, Generation, Manifest, Provenance
from millis_server.manifest_files import sha256

ARGUMENTS_FILES = {"vllm": "model.json", "tensorrt-llm": "model.yaml"}
"""Where each engine reads its arguments, in the version folder."""

MEMORY_SHARE = 0.45
"""Of the GPU, or with TensorRT-LLM of what the weights leave of it: a new version is loaded beside the old one."""

MAX_STREAMS = 64
DEFAULT_MAX_TOKENS = 256
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""What a chat template may name."""


class EntryError(ValueError):
    """An entry that cannot be written; the message is one line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Writes one version of one variant."""
    options = _parser().parse_args(argv)
    try:
        folder = write_entry(options)
    except (EntryError, PublishError) as error:
        print(f"make_entry: {error}", file=sys.stderr)
        return 1
    except ValidationError as error:
        first = error.errors()[0]
        print(f"make_entry: {'.'.join(map(str, first['loc'])) or 'manifest'}: {first['msg']}", file=sys.stderr)
        return 1
    print(folder)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Writes a model repository entry for vLLM or TensorRT-LLM.", allow_abbrev=False
    )
    parser.add_argument("--protocol", required=True, choices=ARGUMENTS_FILES, help="whose engine runs the model")
    parser.add_argument("--checkpoint", required=True, help="hub id, or a path as Triton's container sees it")
    parser.add_argument(
        "--tokenizer",
        required=True,
        type=Path,
        help="the checkpoint's tokenizer.json; generation_config.json or config.json, and tokenizer_config.json, "
        "stand beside it",
    )
    parser.add_argument("--name", required=True, help="logical model name")
    parser.add_argument("--variant", help="name of the variant (default: the protocol)")
    parser.add_argument("--max-tokens", required=True, type=int, help="most tokens of prompt and text together")
    parser.add_argument(
        "--max-streams", type=int, default=MAX_STREAMS, help="texts side by side (default: %(default)s)"
    )
    parser.add_argument(
        "--cache-tokens",
        type=int,
        help="tokens for which the engine has memory at once (default: enough for all texts to be as long as they get)",
    )
    parser.add_argument("--arguments", default="{}", help="further arguments of the engine, as a JSON object")
    parser.add_argument("--model-code", type=Path, help="TensorRT-LLM: folder with its model.py and helpers.py")
    parser.add_argument("--repository", required=True, type=Path, help="model repository to write into")
    return parser


def write_entry(options: argparse.Namespace) -> Path:
    """Writes the entry that the options ask for, whole or not at all, and returns its version folder.

    Raises:
        EntryError: an option, or a file that it names, will not do.
        PublishError: the repository cannot be written.
    """
    if (options.protocol == "tensorrt-llm") != (options.model_code is not None):
        raise EntryError(f"--model-code: {options.protocol} {'has none' if options.model_code else 'needs it'}")
    cache_tokens = options.cache_tokens or options.max_streams * options.max_tokens
    arguments = _arguments(options, cache_tokens)
    with staging(options.repository) as stage:
        folder = stage / "entry" / "1"
        folder.mkdir(parents=True)
        _copy(options.tokenizer, folder / TOKENIZER_FILE)
        # JSON is YAML too, but not as people write it.
        text = json.dumps(arguments, indent=2) if options.protocol == "vllm" else yaml.safe_dump(arguments)
        (folder / ARGUMENTS_FILES[options.protocol]).write_text(text.rstrip() + "\n", "utf-8")
        if options.model_code is not None:
            for name in ("model.py", "helpers.py"):
                _copy(options.model_code / name, folder / name)
        manifest = _manifest(options, folder, cache_tokens)
        write_version(folder, manifest)
        (folder.parent / CONFIG_FILE).write_text(triton_config(manifest), "utf-8")
        return _place(folder.parent, options.repository / manifest.triton_model)


def _arguments(options: argparse.Namespace, cache_tokens: int) -> dict[str, Any]:
    """What the engine is started with."""
    arguments: dict[str, Any] = {"model": options.checkpoint}
    if options.protocol == "vllm":
        arguments |= {
            "max_model_len": options.max_tokens,
            "max_num_seqs": options.max_streams,
            "gpu_memory_utilization": MEMORY_SHARE,
        }
    else:
        arguments |= {
            "backend": "pytorch",
            "max_seq_len": options.max_tokens,
            "max_batch_size": options.max_streams,
            "kv_cache_config": {"max_tokens": cache_tokens, "free_gpu_memory_fraction": MEMORY_SHARE},
            # Its model.py reads these here, and refuses a config.pbtxt that says otherwise.
            "triton_config": {"max_batch_size": 0, "decoupled": True},
        }
    try:
        further = json.loads(options.arguments)
    except ValueError as error:
        raise EntryError(f"--arguments: is not JSON: {error}") from error
    if not isinstance(further, dict):
        raise EntryError(f"--arguments: must be a JSON object, not {type(further).__name__}")
    return arguments | further


def _manifest(options: argparse.Namespace, folder: Path, cache_tokens: int) -> Manifest:
    try:
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    except Exception as error:  # tokenizers raises plain Exception
        raise EntryError(f"--tokenizer: {options.tokenizer}: {error}") from error
    special, template = _chat(options.tokenizer.parent)
    added = tokenizer.encode("").ids
    if added and tokenizer.token_to_id(special.get("bos_token", "")) == added[0]:
        # The engine gets the rendered prompt as text and begins it with this token itself: it must not come twice.
        special["bos_token"] = ""
    arguments_file = ARGUMENTS_FILES[options.protocol]
    return Manifest(
        model=options.name,
        variant=options.variant or options.protocol,
        task="text-generation",
        # The gateway counts a rendered prompt without the tokens that the engine adds.
        max_tokens=options.max_tokens - len(added),
        default_variant=True,
        files={path.name: sha256(path) for path in sorted(folder.iterdir())},
        size_bytes=(folder / arguments_file).stat().st_size,
        provenance=Provenance(
            checkpoint=options.checkpoint, created_at=datetime.now(UTC).isoformat(timespec="seconds")
        ),
        generation=Generation(
            protocol=options.protocol,
            weights=(arguments_file,),
            vocabulary=tokenizer.get_vocab_size(),
            chat_template=template,
            special_tokens=special,
            eos_ids=_eos_ids(options.tokenizer.parent),
            default_max_tokens=min(DEFAULT_MAX_TOKENS, options.max_tokens),
            max_streams=options.max_streams,
            cache_tokens=cache_tokens,
        ),
    )


def _chat(checkpoint: Path) -> tuple[dict[str, str], str]:
    """Special tokens by name, and the chat template; of several the one named `default`."""
    config = _read(checkpoint / "tokenizer_config.json")
    special = {}
    for name in SPECIAL_TOKENS:
        token = config.get(name)
        if token is not None:
            special[name] = token["content"] if isinstance(token, dict) else token
    file = checkpoint / "chat_template.jinja"
    template = file.read_text("utf-8") if file.is_file() else config.get("chat_template") or ""
    if isinstance(template, list):
        template = {each["name"]: each["template"] for each in template}.get("default", "")
    return special, template


def _eos_ids(checkpoint: Path) -> tuple[int, ...]:
    """Tokens that end a text."""
    for name in ("generation_config.json", "config.json"):
        found = _read(checkpoint / name).get("eos_token_id")
        if found is not None:
            return tuple(found) if isinstance(found, list) else (found,)
    raise EntryError(f"{checkpoint}: neither generation_config.json nor config.json has an eos_token_id")


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty when there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise EntryError(f"{path}: is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise EntryError(f"{path}: must be a JSON object, not {type(value).__name__}")
    return value


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise EntryError(f"{source}: {error.strerror}") from error


def _place(entry: Path, variant: Path) -> Path:
    """Moves an entry into the repository, or, where the variant is there already, its version beside the others."""
    if not variant.is_dir():
        entry.rename(variant)
        return variant / "1"
    versions = [int(path.name) for path in variant.iterdir() if path.name.isdecimal()]
    target = variant / str(max(versions, default=0) + 1)
    (entry / "1").rename(target)
    return target


if __name__ == "__main__":
    sys.exit(main())
