"""The record of one run: `manifest.json`, `history.jsonl` and `summary.json` in its own directory.

Whole files appear at once (written aside, then renamed) and rows are appended one line at a time, so that whatever
kills the run, what is there can be read. A run that was killed outright keeps the status "running".
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.canonical import to_json
from harness.errors import UserError, require, unwritable
from harness.metrics import Row, Summary

Status = Literal["running", "finished", "failed", "diverged", "interrupted"]


@dataclass(frozen=True)
class Record:
    """The files of one run.

    Args:
        directory: made by `start` or `refuse`.
    """

    directory: Path

    def start(self, manifest: dict[str, Any]) -> None:
        """Make the directory and write who the run is, with the status "running".

        Raises:
            UserError: if the directory holds a run already, or cannot be written.
        """
        require(
            not self._path("manifest.json").exists(),
            "hydra.run.dir",
            "must not hold another run: choose a new directory",
            str(self.directory),
        )
        self._make()
        self._write("manifest.json", manifest)
        self.finish({}, "running")

    def refuse(self, config: dict[str, Any], error: str) -> None:
        """Leave word of a run that was refused before it had a name: what was asked for, and why it cannot be.

        Raises:
            UserError: if the directory cannot be written.
        """
        self._make()
        self._write("manifest.json", {"config": config})
        self._write("summary.json", {"run/status": "failed", "run/error": error})

    def amend(self, changes: dict[str, Any]) -> None:
        """Add what became known later (`facts`, `tags`) to the manifest."""
        self._write("manifest.json", self.manifest() | changes)

    def append(self, row: Row) -> None:
        """Add one row to the history, or nothing if the disk is full."""
        line = (to_json(row) + "\n").encode()
        path = self._path("history.jsonl")
        with _explained(path), path.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                rest = line
                while rest:  # where only a part fits, writing the rest says why
                    rest = rest[file.write(rest) :]
            except OSError:
                file.truncate(end)
                raise

    def finish(self, summary: Summary, status: Status, error: str = "") -> None:
        """Write the summary, stamped with `run/id`, `run/name`, `run/kind`, `run/status`, `run/error` and `time/clock`.

        Args:
            error: why the run did not finish, in one sentence; "" leaves the key out.
        """
        manifest = self.manifest()
        stamp = {f"run/{key}": manifest[key] for key in ("id", "name", "kind")}
        stamp |= {"run/status": status, "time/clock": manifest["clock"]}
        self._write("summary.json", stamp | ({"run/error": error} if error else {}) | summary)

    def attach(self, name: str, write: Callable[[Path], object]) -> None:
        """Add a file of any kind, whole or not at all."""
        path, aside = self._path(name), self._path(f".{os.getpid()}.{name}")
        with _explained(path):
            try:
                write(aside)
                aside.replace(path)
            except OSError:
                aside.unlink(missing_ok=True)
                raise

    def manifest(self) -> dict[str, Any]:
        """The manifest, as written.

        Raises:
            UserError: if it cannot be read.
        """
        return self._read("manifest.json")

    def summary(self) -> Summary:
        """The summary, as written.

        Raises:
            UserError: if it cannot be read.
        """
        return self._read("summary.json")

    def rows(self) -> list[Row]:
        """The history so far; a line that was cut short by the run's death is left out.

        Raises:
            UserError: if it cannot be read.
        """
        path = self._path("history.jsonl")
        if not path.exists():
            return []
        try:
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            return [json.loads(line) for line in lines if line.endswith("\n")]
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from error

    def _make(self) -> None:
        with _explained(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)

    def _path(self, name: str) -> Path:
        return self.directory / name

    def _write(self, name: str, content: dict[str, Any]) -> None:
        text, path = to_json(content, indent=2) + "\n", self._path(name)
        aside = self._path(f".{name}.{os.getpid()}")
        with _explained(path):
            try:
                with aside.open("w", encoding="utf-8") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                aside.replace(path)
            except OSError:
                aside.unlink(missing_ok=True)
                raise

    def _read(self, name: str) -> dict[str, Any]:
        path = self._path(name)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from error
        if not isinstance(content, dict):
            raise _unreadable(path, "no JSON object")
        return content


def _unreadable(path: Path, reason: object) -> UserError:
    return UserError(f"{path} cannot be read ({reason}): choose another run, or run it again")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(unwritable(path, error)) from error
