"""Kernels whose samples are sparse rows: those of a linear model, or its columns."""

import torch

from harness.kernels.base import Kernel
from harness.kernels.sparse_rows import SparseRows


class OnRows(Kernel):
    """A kernel whose samples are sparse rows.

    Attributes:
        rows: what it visits.
    """

    rows: SparseRows

    @property
    def indptr(self) -> torch.Tensor:
        """Of the rows."""
        return self.rows.indptr

    @property
    def indices(self) -> torch.Tensor:
        """Of the rows: features."""
        return self.rows.indices

    @property
    def arrays(self) -> dict[str, torch.Tensor]:
        """With their values."""
        return super().arrays | {f"{self.rows_name}: values": self.rows.values}

    @property
    def num_coordinates(self) -> int:
        """Features of the rows."""
        return self.rows.num_features
