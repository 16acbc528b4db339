"""A small disk of the system's own, which can be filled to the last byte without harm to anything else."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Disk:
    """Where mounting is not allowed it is a folder as any other, and is never filled."""

    def __init__(self, folder: Path, *, fillable: bool) -> None:
        self.folder = folder
        self.fillable = fillable

    @classmethod
    @contextmanager
    def mounted(cls, folder: Path, mebibytes: int) -> Iterator[Disk]:
        folder.mkdir(parents=True, exist_ok=True)
        options = f"size={mebibytes}m,mode=755"
        command = ["mount", "-t", "tmpfs", "-o", options, "topsmile-chaos", str(folder)]
        mounted = os.geteuid() == 0 and subprocess.run(command, check=False, capture_output=True).returncode == 0
        try:
            yield cls(folder, fillable=mounted)
        finally:
            if mounted:
                subprocess.run(["umount", "-l", str(folder)], check=False)

    def fill(self) -> None:
        """Take everything that is left."""
        with (self.folder / "filler").open("wb") as filler, suppress(OSError):
            while True:
                room = os.statvfs(self.folder)
                size = room.f_bavail * room.f_frsize
                os.posix_fallocate(filler.fileno(), filler.seek(0, 2), max(size, 4096))
                filler.seek(0, 2)

    def release(self) -> None:
        (self.folder / "filler").unlink(missing_ok=True)
