"""Flops of dense linear algebra, which torch's counter does not know.

(Golub, Van Loan, Matrix Computations, 4th edition, 2013: sections 3.1, 3.2, 4.2, 5.2, 8.3 and figure 8.6.1.) Of m x n
matrices, leading terms; `batch` matrices at once.
"""

from collections.abc import Callable, Sequence
from math import prod


def _batched(flops: Callable[[int, int], float]) -> Callable[..., float]:
    def count(matrix: Sequence[int], *others: Sequence[int]) -> float:
        return prod(matrix[:-2]) * flops(*matrix[-2:])

    return count


def _solve(matrix: Sequence[int], right: Sequence[int]) -> float:
    n, columns = matrix[-1], right[-1] if len(right) >= len(matrix) else 1
    return prod(matrix[:-2]) * (2 * n**3 / 3 + 2 * n**2 * columns)


def _solve_triangular(matrix: Sequence[int], right: Sequence[int]) -> float:
    return prod(right[:-2]) * matrix[-1] ** 2 * right[-1]


def _qr(m: int, n: int) -> float:
    """R by Householder, and as much again for a thin Q."""
    rows, columns = max(m, n), min(m, n)
    return 4 * (rows * columns**2 - columns**3 / 3)


def _svd(m: int, n: int) -> float:
    """Values and thin vectors: Golub-Reinsch."""
    rows, columns = max(m, n), min(m, n)
    return 14 * rows * columns**2 + 8 * columns**3


FLOPS: dict[str, Callable[..., float]] = {
    "_linalg_eigh": _batched(lambda m, n: 9 * n**3),
    "_linalg_solve_ex": _solve,
    "_linalg_svd": _batched(_svd),
    "cholesky": _batched(lambda m, n: n**3 / 3),
    "linalg_cholesky_ex": _batched(lambda m, n: n**3 / 3),
    "linalg_inv_ex": _batched(lambda m, n: 2 * n**3),
    "linalg_lu_factor_ex": _batched(lambda m, n: 2 * n**3 / 3),
    "linalg_qr": _batched(_qr),
    "linalg_solve_triangular": _solve_triangular,
}
