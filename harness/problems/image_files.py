"""Images and their classes: scikit-learn's digits, and folders of files.

IDX      Fashion-MNIST (Xiao et al., arXiv:1708.07747) and MNIST: train-images-idx3-ubyte, train-labels-idx1-ubyte,
         t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte, each as it is or with .gz. Debian's package
         dataset-fashion-mnist puts them under /usr/share/datasets/fashion-mnist
CIFAR-10 (Krizhevsky, 2009), the binary version: data_batch_1.bin to data_batch_5.bin, and test_batch.bin. The
         Python version is of pickles, which may run any program, and is refused
"""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch

from harness.errors import UserError

_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_CIFAR = (*(f"data_batch_{part}.bin" for part in range(1, 6)), "test_batch.bin")
_CIFAR_IMAGE = (3, 32, 32)  # channels, rows, columns
_BYTES = 0x08  # an IDX file's code of its dtype


@dataclass(frozen=True)
class Images:
    """Some images.

    Args:
        images: uint8, shape (samples, channels, rows, columns).
        classes: int64, shape (samples,).
    """

    images: torch.Tensor
    classes: torch.Tensor

    def __len__(self) -> int:
        return len(self.classes)


def digits(test_fraction: float, seed: int) -> tuple[Images, Images]:
    """Training and test set of handwritten digits (Alpaydin and Kaynak, UCI 1998), with pixels 0 .. 16.

    Args:
        test_fraction: share of images held out, in (0, 1).
        seed: of which.
    """
    # Workers get tensors through shared memory and never need scikit-learn.
    from sklearn.datasets import load_digits  # noqa: PLC0415

    loaded = load_digits()
    order = torch.randperm(len(loaded.target), generator=torch.Generator().manual_seed(seed))
    images = torch.from_numpy(loaded.images).to(torch.uint8)[order, None]
    classes = torch.from_numpy(loaded.target)[order]
    held_out = min(max(round(test_fraction * len(order)), 1), len(order) - 1)
    return Images(images[held_out:], classes[held_out:]), Images(images[:held_out], classes[:held_out])


def files_in(folder: Path) -> list[Path]:
    """The files of the format that a folder has, in the order of `read`.

    Raises:
        UserError: if it has those of none.
    """
    for names in (_IDX, _CIFAR):
        found = [_spelling(folder / name) for name in names]
        if None not in found:
            return cast(list[Path], found)
    if (folder / "data_batch_1").is_file():
        raise UserError(
            f"{folder} has the Python version of CIFAR-10, which is pickles and may run any program: take the binary "
            f"version, {_CIFAR[0]} and so on"
        )
    raise UserError(
        f"{folder} has neither all of {', '.join(_IDX)} (Fashion-MNIST or MNIST, each with or without .gz) nor all of "
        f"{_CIFAR[0]} to {_CIFAR[4]} and {_CIFAR[5]} (CIFAR-10): problem.path must name a folder that has"
    )


def read(files: list[Path]) -> tuple[Images, Images]:
    """Training and test set.

    Args:
        files: of `files_in`.

    Raises:
        UserError: if a file is not what its name says.
    """
    if len(files) == len(_CIFAR):
        parts = [_cifar(file) for file in files]
        train = Images(
            torch.cat([part.images for part in parts[:-1]]), torch.cat([part.classes for part in parts[:-1]])
        )
        return train, parts[-1]
    train, test = (_idx_pair(*files[begin : begin + 2]) for begin in (0, 2))
    if train.images.shape[1:] != test.images.shape[1:]:
        raise UserError(f"{files[0]} and {files[2]} have images of different sizes: fetch them again")
    return train, test


def _spelling(file: Path) -> Path | None:
    return next((each for each in (file, file.with_name(file.name + ".gz")) if each.is_file()), None)


def _idx_pair(images: Path, classes: Path) -> Images:
    pixels, labels = _idx(images, 3), _idx(classes, 1)
    if len(pixels) != len(labels) or not len(labels):
        raise UserError(f"{images} has {len(pixels)} images and {classes} {len(labels)} classes: fetch them again")
    return Images(pixels[:, None], labels.long())


def _idx(file: Path, dimensions: int) -> torch.Tensor:
    """The array of an IDX file (https://yann.lecun.com/exdb/mnist): 0, 0, dtype, dimensions, their sizes, bytes."""
    content = _content(file)
    start = 4 * (1 + dimensions)
    sizes = np.frombuffer(content[4:start], ">u4") if len(content) >= start else np.zeros(0)
    if content[:4] != bytes((0, 0, _BYTES, dimensions)) or len(content) - start != sizes.prod(dtype=np.int64):
        raise UserError(f"{file} is no IDX file of bytes in {dimensions} dimensions, or is cut short: fetch it again")
    values = np.frombuffer(content, np.uint8, offset=start).reshape(sizes.astype(np.int64))
    return torch.from_numpy(values.copy())


def _cifar(file: Path) -> Images:
    """A class and an image after the other: 1 + 3,072 bytes each."""
    content = np.frombuffer(_content(file), np.uint8)
    row = 1 + int(np.prod(_CIFAR_IMAGE))
    rows = content[: len(content) // row * row].reshape(-1, row)
    if not len(rows) or len(content) % row or rows[:, 0].max() > 9:
        raise UserError(f"{file} is no CIFAR-10 batch of rows of {row} bytes, or is cut short: fetch it again")
    images = torch.from_numpy(rows[:, 1:].copy()).view(-1, *_CIFAR_IMAGE)
    return Images(images, torch.from_numpy(rows[:, 0].astype(np.int64)))


def _content(file: Path) -> bytes:
    try:
        content = file.read_bytes()
        return gzip.decompress(content) if file.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file} cannot be read ({error}): fetch it again") from error
