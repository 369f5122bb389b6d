"""The key-value store through which ranks meet, without sockets: a rank that waits for a key lets the others run."""
# mypy: disable-error-code="attr-defined, override, misc"

from collections.abc import Sequence
from datetime import timedelta

import torch.distributed as dist

from hardware.simulated.activity import Signal, TimedOut
from hardware.simulated.engine import Engine

_TIMEOUT = timedelta(minutes=30)  # longer than torch's 300 s: a key that nobody sets is a deadlock, and known at once


class SimulatedStore(dist.Store):
    """A store of one run; its operations take no virtual time, but keep to the order of it.

    Args:
        timeout: of waits.
        shares: a store whose values are these too.
    """

    def __init__(self, engine: Engine, timeout: timedelta = _TIMEOUT, shares: "SimulatedStore | None" = None) -> None:
        super().__init__()
        self._engine = engine
        self.set_timeout(timeout)
        self._values: dict[str, bytes] = {} if shares is None else shares._values
        self._known: dict[str, Signal] = {} if shares is None else shares._known
        self._views: list[SimulatedStore] = []

    def view(self, timeout: timedelta = _TIMEOUT) -> "SimulatedStore":
        """A rank's own handle on the same values."""
        self._views.append(SimulatedStore(self._engine, timeout, self))  # kept: a PrefixStore keeps torch's half alone
        return self._views[-1]

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
        timeout_s = (self.timeout if timeout is None else timeout).total_seconds()
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
        if key not in self._values:
            return False  # whoever waits for it goes on waiting
        del self._values[key], self._known[key]
        return True

    def num_keys(self) -> int:
        """How many there are."""
        self._engine.sync()
        return len(self._values)

    def list_keys(self) -> list[str]:
        """All of them."""
        self._engine.sync()
        return list(self._values)

    deleteKey, getNumKeys = delete_key, num_keys  # as a PrefixStore around it calls them


class TCPStore(dist.PrefixStore):
    """Stands for torch's class of the same name: ranks that name the same address meet, without a socket.

    Args:
        store: whose values they are.
        host_name, port: the address.
        world_size: how many make it.
        is_master: whether it waits for them.
        timeout: of waits.
        wait_for_workers: whether a master waits at all.
        multi_tenant, master_listen_fd, use_libuv: of the socket that there is not.
    """

    def __init__(
        self,
        store: SimulatedStore,
        host_name: str,
        port: int,
        world_size: int | None = None,
        is_master: bool = False,
        timeout: timedelta = _TIMEOUT,
        wait_for_workers: bool = True,
        multi_tenant: bool = False,
        master_listen_fd: int | None = None,
        use_libuv: bool | None = None,
    ) -> None:
        super().__init__(f"{host_name}:{port}", store.view(timeout))
        self.host, self.port = host_name, port
        if self.add("init/", 1) == world_size:
            self.set("init/all", "")
        if is_master and wait_for_workers and world_size is not None:
            self.wait(["init/all"])


class FileStore(dist.PrefixStore):
    """Stands for torch's class of the same name: ranks that name the same file meet, without the file.

    Args:
        store: whose values they are.
        file_name: the path.
        world_size: which torch uses to delete the file.
    """

    def __init__(self, store: SimulatedStore, file_name: str, world_size: int = -1) -> None:
        super().__init__(file_name, store.view())
        self.path = file_name


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)
