"""Starts the tritonserver that the nvidia-pytriton wheel carries, watches it, and leaves nothing of it behind."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib.util
import logging
import os
import shutil
import signal
import socket
import sys
import sysconfig
from collections import deque
from logging.handlers import RotatingFileHandler
from pathlib import Path

from millis_server.triton.client import TritonClient

LOG_BYTES = 4 * 1024 * 1024
"""Size at which Triton's log is turned over; one older file is kept."""

TAIL_LINES = 20
"""Lines of Triton's log in the message when it dies."""

EXIT_SECONDS = 6
"""How long Triton may take to finish before it is killed. Nothing of ours is under way by then, but Triton also waits
for requests that a model's dead process has left open for ever."""

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # where the C library puts it

BACKENDS = {"backend": "millis", "generation_backend": "millis_generation"}
"""Folders beside this file, and the names under which Triton finds them."""

PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class TritonFailed(RuntimeError):
    """Triton could not be started, or died; the message ends with the tail of its log."""


class EmbeddedTriton:
    """A tritonserver process of our own, on free loopback ports, with our backends.

    Models are loaded on request only (`--model-control-mode=explicit`).

    Args:
        model_repository: folder of the published models.
        state_dir: folder for the backends and the log; created when missing.
    """

    def __init__(self, model_repository: Path, state_dir: Path) -> None:
        self._repository = model_repository.resolve()
        self._state = state_dir.resolve() / "triton"
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._port, self._grpc_port = _free_ports(2)

    @property
    def grpc_url(self) -> str:
        """host:port of its gRPC service."""
        return f"127.0.0.1:{self._grpc_port}"

    @property
    def url(self) -> str:
        """host:port of its HTTP service."""
        return f"127.0.0.1:{self._port}"

    async def start(self, timeout: float) -> None:
        """Starts the server and returns when it is ready to load models.

        Raises:
            TritonFailed: it is not installed for this Python, its folder cannot be written, it died, or it was not
                ready within `timeout` seconds.
        """
        wheel = _wheel()
        try:
            backends = await asyncio.to_thread(_install_backends, wheel, self._state / "backends")
        except OSError as error:
            raise TritonFailed(
                f"--state-dir (MILLIS_STATE_DIR) {self._state.parent} cannot be written: {error.strerror or error}"
            ) from error
        self._process = await asyncio.create_subprocess_exec(
            *self._command(wheel, backends),
            env=_environment(wheel),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            # A group of its own: Ctrl-C in the terminal reaches the gateway only, which drains first.
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        self._reader = asyncio.create_task(self._read_log(self._process))
        client = TritonClient(self.url, infer_timeout=1, load_timeout=1)
        try:
            async with asyncio.timeout(timeout):
                while not await client.is_ready():
                    if self._process.returncode is not None:
                        raise TritonFailed(await self.last_words())
                    await asyncio.sleep(0.05)
        except TimeoutError:
            await self.stop()
            raise TritonFailed(f"Triton was not ready within {timeout:g} s\n" + "\n".join(self._tail)) from None
        finally:
            client.close()

    async def wait(self) -> int:
        """Waits until the process ends and returns its exit code."""
        assert self._process is not None, "start() comes first. This is a bug."
        return await self._process.wait()

    async def last_words(self) -> str:
        """Says how the process ended, with the tail of its log."""
        assert self._process is not None and self._reader is not None, "start() comes first. This is a bug."
        code = await self._process.wait()
        # A model's process that was still loading outlives Triton, and holds its log open.
        _end_group(self._process)
        await self._reader
        return f"Triton ended with exit code {code}; the end of {self._log_path}:\n" + "\n".join(self._tail)

    async def stop(self) -> None:
        """Ends the server and the processes of its models, by force when it does not end by itself."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            process.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EXIT_SECONDS):
                    await process.wait()
        _end_group(process)
        await process.wait()
        if self._reader is not None:
            await self._reader
        await asyncio.to_thread(_remove, self._regions)

    @property
    def _regions(self) -> str:
        """How the names of its shared memory begin: two tritonservers on one machine must not share any."""
        return f"millis-{os.getpid()}-{self._port}-"

    @property
    def _log_path(self) -> Path:
        return self._state / "triton.log"

    def _command(self, wheel: Path, backends: Path) -> list[str]:
        return [
            str(wheel / "tritonserver" / "bin" / "tritonserver"),
            f"--model-repository={self._repository}",
            f"--backend-directory={backends}",
            "--model-control-mode=explicit",
            # Configs are complete; completing them would start every model's process twice.
            "--disable-auto-complete-config",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={self._grpc_port}",
            "--allow-metrics=false",
            "--http-address=127.0.0.1",
            f"--http-port={self._port}",
            "--model-load-thread-count=4",
            f"--exit-timeout-secs={EXIT_SECONDS - 2}",
            f"--backend-config=python,shm-region-prefix-name={self._regions}",
        ]

    async def _read_log(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None, "stdout is a pipe. This is a bug."
        handler = RotatingFileHandler(self._log_path, maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8")
        try:
            while line := await _read_line(process.stdout):
                text = line.decode(errors="replace").rstrip()
                if text:
                    self._tail.append(text)
                    handler.emit(logging.LogRecord("triton", logging.INFO, "", 0, text, None, None))
        finally:
            handler.close()


async def _read_line(stream: asyncio.StreamReader) -> bytes:
    """Reads a line; one longer than the stream's buffer comes in pieces instead of ending the reader."""
    try:
        return await stream.readuntil(b"\n")
    except asyncio.IncompleteReadError as error:
        return error.partial
    except asyncio.LimitOverrunError as error:
        return await stream.read(error.consumed)


def _end_group(process: asyncio.subprocess.Process) -> None:
    """Ends what is left of Triton's group, the models' processes: one that outlived it would hold memory for ever."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _wheel() -> Path:
    """Folder of the installed nvidia-pytriton package, found without importing it (it configures logging)."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise TritonFailed(
            'the embedded Triton is not installed: pip install "millis[server]", '
            "or name a running one with --triton-url"
        )
    return Path(spec.origin).parent


def _remove(regions: str) -> None:
    """Removes shared memory whose names begin so: a Triton that ended by force has left its own behind."""
    for region in SHARED_MEMORY.glob(f"{regions}*"):
        region.unlink(missing_ok=True)


def _install_backends(wheel: Path, target: Path) -> Path:
    """Lays out the backend folder: Triton's Python backend with the stub of this Python, and ours.

    They are copies because Triton refuses a backend library that a link leads out of its folder.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = wheel / "tritonserver" / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        found = sorted(path.name for path in stub.parent.parent.iterdir())
        raise TritonFailed(f"the embedded Triton has no stub for Python {version}, only for {', '.join(found)}")
    shutil.rmtree(target, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(wheel / "tritonserver" / "backends" / "python", target / "python", ignore=ignored)
    shutil.copy(stub, target / "python")
    for folder, name in BACKENDS.items():
        shutil.copytree(Path(__file__).parent / folder, target / name, ignore=ignored)
    return target


def _environment(wheel: Path) -> dict[str, str]:
    """Triton's environment: its libraries, and this interpreter first in PATH, where the stub looks for Python."""
    libraries = [wheel.parent / "nvidia_pytriton.libs", Path(sysconfig.get_config_var("LIBDIR") or "")]
    inherited = os.environ.get("LD_LIBRARY_PATH")
    return {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join([*map(str, libraries), *([inherited] if inherited else [])]),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        # Libraries below the engine must not start a thread for each core of the host either.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _die_with_parent() -> None:
    """Runs in the child before exec: ask the kernel to end it when the gateway dies, however that happens."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
