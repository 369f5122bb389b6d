"""The crew: what threads and processes alike need to know about the workers of one run."""

import re
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import torch

from harness.errors import LostConnection, TwinclockError, WaitedInVain, WorkerFailed


@dataclass(frozen=True)
class Crew:
    """The workers of one run.

    Args:
        cpus: hardware threads each worker may run on.
        nodes: the node each worker is on, of 0 .. num_nodes - 1.
        beneath: the NUMA nodes, as the kernel numbers them, beneath each node.
        virtual: whether nodes are virtual sockets.
        numa_nodes: all NUMA nodes in use, over which memory is interleaved.
        memory_policy: of shared tensors, see `placement`.
        intra_op_threads: torch's threads per worker.
        simd: vector instructions that torch's kernels may use in worker processes, see `simd`.
        timeout_s: after which a collective has failed.
        devices: number of the CUDA device of each worker; None where they compute on their CPUs.
        backend: library of their process group, gloo or nccl.
        addresses: at which each worker listens; None where all are on this machine.
    """

    cpus: list[tuple[int, ...]]
    nodes: list[int]
    beneath: list[tuple[int, ...]]
    virtual: bool
    numa_nodes: list[int]
    memory_policy: str
    intra_op_threads: int
    simd: str | None
    timeout_s: float
    devices: list[int] | None = None
    backend: str = "gloo"
    addresses: list[str] | None = None

    def address(self, rank: int) -> str:
        """At which a worker listens."""
        return "127.0.0.1" if self.addresses is None else self.addresses[rank]

    def device(self, rank: int) -> torch.device:
        """What a worker computes on."""
        return torch.device("cpu") if self.devices is None else torch.device("cuda", self.devices[rank])

    @property
    def num_workers(self) -> int:
        """How many."""
        return len(self.cpus)

    @property
    def num_nodes(self) -> int:
        """Sockets that hold workers."""
        return len(self.beneath)

    def policy(self, node: int | None) -> str:
        """The memory policy of a tensor that is to lie on a node, or wherever the settings say."""
        return self.memory_policy if node is None else f"bind:{','.join(map(str, self.beneath[node]))}"

    def placed(self, node: int | None, policy: str) -> dict[str, object]:
        """What the manifest says of a shared tensor.

        Args:
            node: as the algorithm asked for.
            policy: as it took.
        """
        asked = {} if node is None else {"node": node, "virtual_socket": self.virtual}
        return {"policy": policy, **asked}


class Background:
    """The helper activities of one worker, as threads.

    Args:
        timeout_s: how long `finish` waits for them.
        tell: called at once, in the activity's thread, with what one raised and its traceback: the worker itself may be
            blocked for long in waiting for others.
    """

    def __init__(self, timeout_s: float, tell: Callable[[BaseException, str], None]) -> None:
        self._timeout_s, self._tell = timeout_s, tell
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []

    def start(self, activity: Callable[[], None]) -> None:
        """Start one. It runs on the CPUs of the thread that starts it."""
        thread = threading.Thread(target=self._run, args=(activity,), name="background", daemon=True)
        self._threads.append(thread)
        thread.start()

    def check(self) -> None:
        """Raise what an activity raised."""
        if self._errors:
            raise self._errors[0]

    def finish(self) -> None:
        """Wait for all.

        Raises:
            WorkerFailed: if one does not end.
        """
        for thread in self._threads:
            thread.join(self._timeout_s)
            if thread.is_alive():
                raise WorkerFailed(f"a background activity did not end within hardware.timeout_s={self._timeout_s}")
        self.check()

    def _run(self, activity: Callable[[], None]) -> None:
        try:
            activity()
        except BaseException as error:
            self._tell(error, traceback.format_exc())
            self._errors.append(error)  # for the worker, which must not end as if nothing had happened


def as_failure(who: str, error: BaseException, details: str) -> Exception:
    """What an error of `who` becomes in `Execution.failure`: the harness's own errors as they are, others wrapped."""
    if isinstance(error, TwinclockError):
        return error
    if late := re.search(r"Timed out waiting (\d+)ms", str(error)):  # gloo's words
        limit = f"hardware.timeout_s={int(late[1]) / 1000:g} s"
        return WaitedInVain(f"{who} waited for the others for more than {limit}: raise it, or see what the others do")
    if re.search(r"Connection (closed|reset) by|Broken pipe", str(error)):
        return LostConnection(f"{who} lost its connection to another rank, which has given up or ended")
    first_line = (str(error).splitlines() or [""])[0]
    return WorkerFailed(f"{who} raised {type(error).__name__}: {first_line}".rstrip(": "), details)
