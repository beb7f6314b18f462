"""The trials of `millis tune`: every one of a model's in one file, which only grows.

What a trial measured does not depend on the target that it was measured for. So the file holds measurements and no
verdicts, and a search begins with all that were made in its own circumstances, whatever they were made for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from millis_pipeline.circumstances import Circumstances
from millis_pipeline.configuration import Configuration
from millis_pipeline.stand import Measured

TRIALS_FILE = "trials.jsonl"


class TrialsError(ValueError):
    """The file cannot be read or written; the message is one line and names it."""


@dataclass(frozen=True)
class Trial:
    """One configuration that was tried.

    Attributes:
        number: of its line in the file.
        configuration: what was tried.
        measured: None when it could not run.
        failure: why not.
    """

    number: int
    configuration: Configuration
    measured: Measured | None
    failure: str = ""


class Trials:
    """All trials of a model, a line of JSON each. A trial is on the disk before the next one begins.

    Args:
        path: of the file, which need not be there.
        circumstances: here and now, by variant and engine.
    """

    def __init__(self, path: Path, circumstances: Mapping[tuple[str, str], Circumstances]) -> None:
        self.path = path
        self._circumstances = circumstances

    def comparable(self) -> list[Trial]:
        """Those in circumstances as they are now, and of each configuration the newest.

        Raises:
            TrialsError: the file is not what this class writes.
        """
        found: dict[Configuration, Trial] = {}
        # What follows the last line end is a line that was broken off when the machine or the process was.
        for number, line in enumerate(self._read().split(b"\n")[:-1], 1):
            try:
                trial = self._trial(number, json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise TrialsError(f"{self.path}:{number}: it is no trial; delete the line") from error
            if trial is not None:
                found[trial.configuration] = trial
        return list(found.values())

    def _trial(self, number: int, kept: dict[str, Any]) -> Trial | None:
        """A line of the file, or None when it cannot be compared."""
        now = self._circumstances.get((kept["configuration"]["variant"], kept["configuration"]["engine"]))
        if now is None or kept["circumstances"] != asdict(now):
            return None
        measured = Measured(**kept["measured"]) if kept["measured"] else None
        return Trial(number, Configuration(**kept["configuration"]), measured, kept["failure"])

    def keep(self, configuration: Configuration, measured: Measured | None, failure: str = "") -> Trial:
        """Writes down what came of a configuration.

        Raises:
            TrialsError: it cannot be written.
        """
        kept = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "configuration": asdict(configuration),
            "measured": asdict(measured) if measured else None,
            "failure": failure,
            "circumstances": asdict(self._circumstances[configuration.variant, configuration.engine]),
        }
        try:
            with self.path.open("a+b") as file:
                file.seek(0)
                before = file.read()
                file.truncate(before.rfind(b"\n") + 1)
                file.write(json.dumps(kept).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise TrialsError(f"{self.path}: {error.strerror}") from error
        return Trial(before.count(b"\n") + 1, configuration, measured, failure)

    def _read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise TrialsError(f"{self.path}: {error.strerror}") from error
