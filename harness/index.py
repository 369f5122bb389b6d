"""The local index of runs: finds the baseline that was run before, and a run by its id.

One line per run in `<root>/index.jsonl`, only ever appended to, by any number of processes at once.
"""

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.canonical import digest, to_json
from harness.errors import UserError
from harness.record import Record

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One line of the index.

    Args:
        key: what makes the run reusable, see `key`.
        directory: of its record, relative to the index's.
        created: ISO 8601, UTC.
    """

    id: str
    key: str
    directory: str
    status: str
    name: str
    created: str


class RunIndex:
    """The runs under one root.

    Args:
        root: folder of `index.jsonl`; made when the first run is added.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / "index.jsonl"
        self._said_damaged = False

    def add(self, key: str, record: Record) -> None:
        """Append one run that has ended.

        Raises:
            UserError: if the index cannot be written.
        """
        line = (to_json(asdict(self._entry(key, record))) + "\n").encode()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b", buffering=0) as file:
                _lock(file.fileno(), fcntl.LOCK_EX)
                file.write(line if self._ends_whole(file.fileno()) else b"\n" + line)
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written ({error.strerror}): free disk space, or choose a writable folder"
            ) from error

    def find(self, key: str) -> Record | None:
        """The newest finished run with this key whose record can still be read."""
        for entry in reversed(self.entries()):
            if entry.key == key and entry.status == "finished":
                record = self._record(entry)
                with suppress(UserError):  # deleted since: an older one will do
                    record.summary()
                    return record
        return None

    def get(self, run_id: str) -> Record | None:
        """The run with this id, whatever became of it; None if the index has no such run."""
        for entry in reversed(self.entries()):
            if entry.id == run_id:
                return self._record(entry)
        return None

    def entries(self) -> list[Entry]:
        """All runs, oldest first; damaged lines are left out, and that is said once."""
        entries, damaged = [], 0
        for line in self._lines():
            try:
                entries.append(Entry(**json.loads(line)))
            except (ValueError, TypeError):
                damaged += 1
        if damaged and not self._said_damaged:
            self._said_damaged = True
            logger.warning("%s: %d damaged line(s) left out", self.path, damaged)
        return entries

    def _lines(self) -> list[bytes]:
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            _lock(file.fileno(), fcntl.LOCK_SH)
            return [line for line in file.read().splitlines() if line.strip()]

    def _entry(self, key: str, record: Record) -> Entry:
        manifest, summary = record.manifest(), record.summary()
        directory = os.path.relpath(record.directory, self.root)
        return Entry(manifest["id"], key, directory, summary["run/status"], manifest["name"], manifest["created"])

    def _record(self, entry: Entry) -> Record:
        return Record(self.root / entry.directory)

    @staticmethod
    def _ends_whole(descriptor: int) -> bool:
        end = os.lseek(descriptor, 0, os.SEEK_END)
        return end == 0 or os.pread(descriptor, 1, end - 1) == b"\n"


def key(parts: dict[str, Any]) -> str:
    """The identity of a result: equal exactly where a run may be reused.

    Args:
        parts: everything that decides the result, in plain types: algorithm, problem, data, hardware, seed, budget,
            `code_digest`, and for a real run `manifest.host()`.
    """
    return digest(parts)


def code_digest(paths: Iterable[Path]) -> str:
    """A hash of the source files that decide a result, so that a run of older code is never taken for a new one.

    Args:
        paths: Python files, and folders of them.
    """
    found = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            content = file.read_bytes()
            found.update(f"{file.relative_to(path.parent).as_posix()} {len(content)}\n".encode() + content)
    return found.hexdigest()[:16]


def _lock(descriptor: int, operation: int) -> None:
    # Some network file systems have no locks; there, lines may be damaged, and damaged lines are left out.
    with suppress(OSError):
        fcntl.flock(descriptor, operation)
