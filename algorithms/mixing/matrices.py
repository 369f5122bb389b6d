"""Who averages with whom, and with which weights: the mixing matrices of decentralised algorithms.

    w_i  <-  sum_j W[i, j] w_j          W[i, j] > 0 only where worker j sends to worker i

    weighting=metropolis  W[i, j] = 1 / (1 + max(degree of i, degree of j)), and W[i, i] is what is left of 1; doubly
                          stochastic on every graph here (Xiao, Boyd and Lall, IPSN 2005)
    weighting=uniform     a sender's column is 1 / (1 + its degree) everywhere: column stochastic, as push-sum asks for;
                          doubly stochastic too where all have the same degree

How fast averages spread is the spectral gap, 1 - |lambda_2|: with a symmetric W the models' distance from their
average shrinks by at least 1 - gap at every step. Graphs that change with time go through a period of matrices;
lambda_2 is then that of their product, per step.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce

import numpy as np
import torch
import torch.distributed as dist

from harness.errors import require

WEIGHTINGS = ("metropolis", "uniform")
ZERO = 1e-12  # eigenvalues below it are rounding errors


@dataclass(frozen=True)
class Row:
    """One worker's part in one step.

    Args:
        own: weight of what it has itself, W[i, i].
        receives: weight of what each worker j sends to it, W[i, j].
        sends: the workers it sends to.
    """

    own: float
    receives: dict[int, float]
    sends: tuple[int, ...]


@dataclass(frozen=True)
class Mixing(ABC):
    """A graph of workers, and the weights of its edges.

    Args:
        weighting: metropolis or uniform.
    """

    weighting: str

    def __post_init__(self) -> None:
        rule = f"must be one of {', '.join(WEIGHTINGS)}"
        require(self.weighting in WEIGHTINGS, "algorithm.mixing.weighting", rule, self.weighting)

    @abstractmethod
    def receivers(self, num_workers: int, step: int) -> list[set[int]]:
        """To whom each worker sends at a step of the period; nobody sends to itself."""

    def period(self, num_workers: int) -> int:
        """How many steps it takes until the graph is the first one again."""
        return 1

    def notices(self, num_workers: int) -> list[str]:
        """What a user may not expect of the graph of so many workers, one line each."""
        return []

    def matrices(self, num_workers: int) -> list[np.ndarray]:
        """W of every step of a period, float64, shape (workers, workers)."""
        return [_matrix(self, num_workers, step) for step in range(self.period(num_workers))]

    def rows(self, num_workers: int, rank: int) -> list[Row]:
        """One worker's part in every step of a period."""
        return [_row(matrix, rank) for matrix in self.matrices(num_workers)]

    def is_doubly_stochastic(self, num_workers: int) -> bool:
        """Whether rows sum to 1 too, as averaging without push-sum needs."""
        return all(np.allclose(matrix.sum(axis=1), 1) for matrix in self.matrices(num_workers))

    def is_symmetric(self, num_workers: int) -> bool:
        """Whether it is always the same matrix, and weighs both directions of an edge alike."""
        matrix, *others = self.matrices(num_workers)
        return not others and np.allclose(matrix, matrix.T)


def spectral_gap(matrices: Sequence[np.ndarray]) -> float:
    """1 - |lambda_2|, per step, of the product of a period's matrices; 1 for a single worker."""
    moduli = np.sort(np.abs(np.linalg.eigvals(reduce(lambda product, matrix: matrix @ product, matrices))))
    second = moduli[-2] if len(moduli) > 1 and moduli[-2] > ZERO else 0.0
    return float(1 - second ** (1 / len(matrices)))


def messages_per_step(mixing: Mixing, num_workers: int) -> float:
    """How many edges there are, in the mean over a period."""
    rows = [row for rank in range(num_workers) for row in mixing.rows(num_workers, rank)]
    return sum(len(row.sends) for row in rows) / mixing.period(num_workers)


def require_doubly_stochastic(mixing: Mixing, num_workers: int) -> None:
    """Refuse weights whose rows do not sum to 1.

    Raises:
        UserError: naming what would work.
    """
    rule = f"must be metropolis on this graph of {num_workers} workers, or use algorithm=stochastic_gradient_push"
    require(mixing.is_doubly_stochastic(num_workers), "algorithm.mixing.weighting", rule, mixing.weighting)


class Exchange:
    """One step of averaging, under way as soon as it is made.

    Args:
        vector: this worker's, shape (n,), the same n on all; must not change until `finish`.
        row: its part in the step.
    """

    def __init__(self, vector: torch.Tensor, row: Row) -> None:
        self._vector, self._row = vector, row
        self._boxes = {rank: torch.empty_like(vector) for rank in row.receives}
        self._works = begin_messages(dict.fromkeys(row.sends, vector), self._boxes)

    def finish(self) -> None:
        """Wait, and write sum_j W[i, j] vector_j into the vector."""
        for work in self._works:
            work.wait()
        self._vector *= self._row.own
        for rank, box in self._boxes.items():
            self._vector.add_(box, alpha=self._row.receives[rank])


def begin_messages(sent: dict[int, torch.Tensor], received: dict[int, torch.Tensor]) -> list[dist.Work]:
    """Begin to send and receive tensors, by the rank on the other side."""
    operations = [dist.P2POp(dist.irecv, tensor, rank) for rank, tensor in received.items()]  # gloo sends to who waits
    operations += [dist.P2POp(dist.isend, tensor, rank) for rank, tensor in sent.items()]
    return dist.batch_isend_irecv(operations) if operations else []


@lru_cache(maxsize=64)
def _matrix(mixing: Mixing, num_workers: int, step: int) -> np.ndarray:
    edges = np.zeros((num_workers, num_workers))
    for sender, receivers in enumerate(mixing.receivers(num_workers, step)):
        edges[list(receivers), sender] = 1
    degrees = edges.sum(axis=0)
    if mixing.weighting == "uniform":
        return (edges + np.eye(num_workers)) / (1 + degrees)
    weights = edges / (1 + np.maximum(degrees[:, None], degrees))
    return weights + np.diag(1 - weights.sum(axis=1))


def _row(matrix: np.ndarray, rank: int) -> Row:
    receives = {int(j): float(matrix[rank, j]) for j in np.flatnonzero(matrix[rank]) if j != rank}
    return Row(float(matrix[rank, rank]), receives, tuple(int(i) for i in np.flatnonzero(matrix[:, rank]) if i != rank))
