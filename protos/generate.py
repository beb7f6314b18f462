"""Generates the Python stubs: messages, services and their types.

Usage: python protos/generate.py TARGET, where TARGET is the folder that `millis/v1` is written under.
"""

import sys
import sysconfig
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

SOURCES = Path(__file__).parent
PLUGINS = Path(sysconfig.get_path("scripts"))


def generate(target: Path) -> int:
    """Runs protoc; files without a service get no service stubs."""
    files = sorted(SOURCES.glob("millis/v1/*.proto"))
    services = [path for path in files if "\nservice " in path.read_text("utf-8")]
    includes = [f"-I{SOURCES}", f"-I{resources.files('grpc_tools') / '_proto'}"]
    mypy = f"--plugin=protoc-gen-mypy={PLUGINS / 'protoc-gen-mypy'}"
    mypy_grpc = f"--plugin=protoc-gen-mypy_grpc={PLUGINS / 'protoc-gen-mypy_grpc'}"
    messages = ["protoc", *includes, mypy, f"--python_out={target}", f"--mypy_out=quiet:{target}", *map(str, files)]
    stubs = [
        "protoc",
        *includes,
        mypy_grpc,
        f"--grpc_python_out={target}",
        f"--mypy_grpc_out=quiet:{target}",
        *map(str, services),
    ]
    return int(protoc.main(messages) or protoc.main(stubs))


if __name__ == "__main__":
    sys.exit(generate(Path(sys.argv[1])))
