"""The key-value store through which ranks meet, without sockets: a rank that waits for a key lets the others run."""
# mypy: disable-error-code="override, misc"

from collections.abc import Sequence
from datetime import timedelta

import torch.distributed as dist

from hardware.simulated.activity import Signal, TimedOut
from hardware.simulated.engine import Engine

_TIMEOUT = timedelta(minutes=30)  # longer than torch's 300 s: a key that nobody sets is a deadlock, and known at once


class SimulatedStore(dist.Store):
    """A store of one run; its operations take no virtual time, but keep to the order of it."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        self._values: dict[str, bytes] = {}
        self._known: dict[str, Signal] = {}
        self._timeout = _TIMEOUT

    def set(self, key: str, value: str | bytes) -> None:
        """Write a value."""
        self._engine.sync()
        self._values[key] = _bytes(value)
        known = self._known.setdefault(key, Signal())
        if not known.happened:
            self._engine.happen(known)

    def get(self, key: str) -> bytes:
        """Read a value, once there is one."""
        self.wait([key])
        return self._values[key]

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Wait until all keys are there.

        Raises:
            DistStoreError: if that takes longer than the time-out, in virtual time.
        """
        self._engine.sync()
        timeout_s = (self._timeout if timeout is None else timeout).total_seconds()
        for key in keys:
            known = self._known.setdefault(key, Signal())
            try:
                self._engine.wait(known, f"key {key!r} of the store", timeout_s=timeout_s)
            except TimedOut:
                words = f"wait timeout after {timeout_s * 1e3:.0f}ms of virtual time, keys: {', '.join(keys)}"
                raise dist.DistStoreError(words) from None

    def check(self, keys: Sequence[str]) -> bool:
        """Whether all keys are there."""
        self._engine.sync()
        return all(key in self._values for key in keys)

    def add(self, key: str, amount: int) -> int:
        """Add to a number, 0 at first; returns the sum."""
        self._engine.sync()
        total = int(self._values.get(key, b"0")) + amount
        self.set(key, str(total))
        return total

    def append(self, key: str, value: str | bytes) -> None:
        """Append to a value, empty at first."""
        self._engine.sync()
        self.set(key, self._values.get(key, b"") + _bytes(value))

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes) -> bytes:
        """Write `desired` where there is `expected`, or nothing and nothing is expected; returns what there is then."""
        self._engine.sync()
        if self._values.get(key, b"") == _bytes(expected):
            self.set(key, desired)
        return self._values.get(key, _bytes(expected))

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        """Read several values."""
        return [self.get(key) for key in keys]

    def multi_set(self, keys: Sequence[str], values: Sequence[str | bytes]) -> None:
        """Write several values."""
        for key, value in zip(keys, values, strict=True):
            self.set(key, value)

    def has_extended_api(self) -> bool:
        """It has."""
        return True

    def delete_key(self, key: str) -> bool:
        """Forget a key; returns whether there was one."""
        self._engine.sync()
        self._known.pop(key, None)
        return self._values.pop(key, None) is not None

    def num_keys(self) -> int:
        """How many there are."""
        self._engine.sync()
        return len(self._values)

    def list_keys(self) -> list[str]:
        """All of them."""
        self._engine.sync()
        return list(self._values)

    def set_timeout(self, timeout: timedelta) -> None:
        """For waits from now on."""
        self._timeout = timeout

    deleteKey, getNumKeys = delete_key, num_keys  # as a PrefixStore around it calls them


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)
