"""Renames that are made all or none, whatever interrupts them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from millis_pipeline.interruption import hold_interruptions


@dataclass(frozen=True)
class Rename:
    """One rename, on one file system.

    Attributes:
        source: what is moved.
        target: where to. A file that is there is replaced, so that at no moment there is none.
        before: a copy of that file, on the same file system, to put back; None where nothing is at the target.
    """

    source: Path
    target: Path
    before: Path | None = None

    def make(self) -> None:
        """Moves the source to its target."""
        self.source.rename(self.target)

    def undo(self) -> None:
        """Makes it as it was; nothing, if the rename was not made."""
        if self.source.exists():
            return
        if self.before is not None:
            self.before.rename(self.target)
        elif self.target.exists():
            self.target.rename(self.source)


def rename_all(renames: Sequence[Rename]) -> None:
    """Makes all renames and brings them to the disk.

    An interruption waits until a rename is made, and then until all are undone: another one does not stop that.

    Raises:
        OSError: one failed, or could not be undone.
        KeyboardInterrupt: it was interrupted. As after an error, the others are undone.
    """
    with hold_interruptions() as interrupted, ExitStack() as undoing:
        for rename in renames:
            undoing.callback(rename.undo)
            rename.make()
            if interrupted():
                raise KeyboardInterrupt
        for folder in {path.parent for rename in renames for path in (rename.source, rename.target)}:
            sync(folder)
        if interrupted():
            raise KeyboardInterrupt
        undoing.pop_all()


def sync(path: Path) -> None:
    """Brings a file, or what a folder lists, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
