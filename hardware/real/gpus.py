"""This machine's CUDA devices as hardware: workers are processes, time is the wall clock."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch

from hardware.base import Execution, Hardware, crowd
from hardware.real import cuda
from hardware.real.crew import Crew
from harness.errors import UserError, require
from harness.program import Program

BACKENDS = ("nccl", "gloo")


@dataclass(frozen=True)
class Gpus(Hardware):
    """The CUDA devices of this machine.

    Args:
        backend: library of the process group. nccl: every worker has a device of its own, collectives go from device
            to device, and there are no messages from worker to worker. gloo: everything goes through the host's memory,
            and workers may share devices, round robin; the same results, at a speed that means little.
        intra_op_threads: torch's threads per worker on the CPU, >= 1.
        timeout_s: after which a collective has failed, > 0.
    """

    kind: ClassVar[str] = "real"
    clock_kind: ClassVar[str] = "wall"
    shares_memory: ClassVar[bool] = False
    runs_kernels: ClassVar[bool] = False
    device_per_rank: ClassVar[bool] = True

    backend: str
    intra_op_threads: int
    timeout_s: float

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = f"must be one of {', '.join(BACKENDS)}"
        require(self.backend in BACKENDS, "hardware.backend", rule, self.backend)
        require(self.intra_op_threads >= 1, "hardware.intra_op_threads", "must be >= 1", self.intra_op_threads)
        require(self.timeout_s > 0, "hardware.timeout_s", "must be > 0", self.timeout_s)

    @property
    def workers_offered(self) -> int:
        """`num_workers`, or as many as there are devices."""
        return self.num_workers or max(len(self._devices), 1)

    def check_there(self) -> None:
        """Refuse a machine without a device."""
        if not self._devices:
            raise UserError(
                f"hardware=gpus needs a CUDA device, and torch {torch.__version__} sees none here: use a machine with "
                "an NVIDIA driver and a torch built for CUDA, or simulate it by hardware=sim_dgx"
            )

    def check(self, num_servers: int = 0) -> list[str]:
        """Refuse what this machine lacks; say who shares.

        Raises:
            UserError: without a device for each worker of NCCL, or without NCCL.
        """
        count, workers = len(self._devices), self.workers_offered
        if self.backend == "gloo":
            return [] if workers <= count else [_sharing(workers, num_servers, count)]
        if not cuda.has_nccl():
            raise UserError("hardware.backend=nccl: this torch was built without NCCL: set hardware.backend=gloo")
        rule = (
            f"must be at most {count}, one for each CUDA device, with hardware.backend=nccl (gloo lets workers share)"
        )
        require(workers <= count, "hardware.num_workers", rule, workers)
        return []

    def execute(self, program: Program, progress: Callable[[int], None]) -> Execution:
        """Run on processes; see `Hardware.execute`."""
        from hardware.real.processes import run_in_processes  # noqa: PLC0415 - torch.distributed only where it runs

        execution = run_in_processes(self._crew, program, progress)
        execution.facts = {**self._facts(), "workers": "processes", **execution.facts}
        execution.tags += ["shared-devices"] * (max(Counter(self._placed).values()) > 1)
        return execution

    @cached_property
    def _devices(self) -> list[cuda.CudaDevice]:
        return cuda.devices()

    @property
    def _placed(self) -> list[int]:
        """The device of each worker."""
        return [rank % len(self._devices) for rank in range(self.workers_offered)]

    @property
    def _crew(self) -> Crew:
        workers, anywhere = self.workers_offered, tuple(sorted(os.sched_getaffinity(0)))
        return Crew(
            cpus=[anywhere] * workers,
            nodes=[0] * workers,
            beneath=[(0,)],
            virtual=False,
            numa_nodes=[0],
            memory_policy="first_touch",
            intra_op_threads=self.intra_op_threads,
            simd=None,
            timeout_s=self.timeout_s,
            devices=self._placed,
            backend=self.backend,
        )

    def _facts(self) -> dict[str, Any]:
        workers: dict[int, list[int]] = {}
        for rank, number in enumerate(self._placed):
            workers.setdefault(number, []).append(rank)
        devices = [{**asdict(self._devices[number]), "workers": ranks} for number, ranks in workers.items()]
        return {"devices": devices, "backend": self.backend, **cuda.versions()}


def _sharing(ranks: int, num_servers: int, count: int) -> str:
    devices = f"{count} CUDA device{'s' * (count > 1)}"
    return f"{crowd(ranks, num_servers)} share {devices}, and their speed says little"
