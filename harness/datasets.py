"""Data sets: where they are looked for, how they are fetched, and what those in LIBSVM text hold.

A data set is a path, an http(s) address, or a name on the LIBSVM page (Chang and Lin, ACM TIST 2011,
https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets). It is looked for as given, then in the folders of
TWINCLOCK_DATA, then in the user's cache, each with and without .gz and .bz2. Nothing is fetched unless asked for.
"""

import bz2
import gzip
import hashlib
import http.client
import os
import shutil
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import numpy as np
import torch

from harness.errors import UserError
from harness.kernels.sparse_rows import SparseRows

_OPEN: dict[str, Callable[..., IO[str]]] = {".gz": gzip.open, ".bz2": bz2.open}
_COMPRESSIONS = tuple(_OPEN)
_SILENCE_S = 30.0  # without a byte from the server
_PAGE = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/binary/"
_ADULT_AND_WEB = [f"a{part}a" for part in range(1, 10)] + [f"w{part}a" for part in range(1, 9)]
_COMPRESSED = (
    "covtype.libsvm.binary covtype.libsvm.binary.scale gisette_scale gisette_scale.t ijcnn1 ijcnn1.t news20.binary "
    "rcv1_train.binary rcv1_test.binary real-sim"
)
_ON_PAGE = {  # name -> file on the page
    "mushrooms": "mushrooms",
    **{name + suffix: name + suffix for name in _ADULT_AND_WEB for suffix in ("", ".t")},
    **{name: name + ".bz2" for name in _COMPRESSED.split()},
}


def find(path: str, download: bool, field: str = "problem.path") -> Path:
    """Where a data set lies on this computer.

    Args:
        path: a path, an http(s) address, or a name on the LIBSVM page; with or without .gz or .bz2.
        download: fetch it into the user's cache where it is nowhere else and its address is known.
        field: the setting to name in an error.

    Raises:
        UserError: if it is nowhere, or cannot be fetched; the message names every place looked at.
    """
    if Path(path).is_dir():
        raise UserError(f"{field}={path!r} is a folder: name a file in it")
    address = _address(path)
    places = _places(path)
    for place in places:
        for candidate in _spellings(place):
            if candidate.is_file():
                return candidate
    if address and download:
        return _fetch(address, _cache() / _cached_name(path, address), field)
    looked = ", ".join(str(place) for place in places)
    fix = f"set problem.download=true to fetch {address}" if address else "name its folder in TWINCLOCK_DATA"
    raise UserError(f"{field}={path!r} is at none of {looked} (nor there with .gz or .bz2): put it there, or {fix}")


def find_folder(path: str, field: str = "problem.path") -> Path:
    """Where a folder of data lies on this computer: as given, in the folders of TWINCLOCK_DATA, or in the cache.

    Raises:
        UserError: if it is nowhere; the message names every place looked at.
    """
    places = _places(path)
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        looked = ", ".join(str(place) for place in places)
        where = "" if looked == path else f", looked for at {looked}"
        raise UserError(f"{field}={path!r} is no folder{where}: put it there, or name another one")
    return found


def read_text(path: Path) -> str:
    """All of a text file in UTF-8, as it is or with .gz or .bz2.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        with _OPEN.get(path.suffix, open)(path, "rt", encoding="utf-8-sig") as file:
            return file.read()
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read as text ({error}): fetch or convert it again") from error


def read(paths: list[Path]) -> list[tuple[SparseRows, torch.Tensor]]:
    """The rows and labels of LIBSVM files that belong together: they get equal numbers of features.

    Features count from 1 in these files, or from 0 if any of them holds a feature 0.

    Returns:
        for each file, rows with float64 values, and the labels as they stand, float64, shape (samples,).

    Raises:
        UserError: if a file cannot be read, is empty, or is not LIBSVM text.
    """
    parsed = [_parse(path) for path in paths]
    first = min((int(matrix.indices.min()) for matrix, _ in parsed if matrix.nnz), default=0)
    base = min(first, 1)
    num_features = max(matrix.shape[1] for matrix, _ in parsed) - base
    return [(_rows(matrix, base, num_features), torch.from_numpy(labels.copy())) for matrix, labels in parsed]


def signs(labels: torch.Tensor, path: object) -> torch.Tensor:
    """Two classes, such as 0 and 1 or 1 and 2, as -1 and +1 in their order, shape (samples,).

    Raises:
        UserError: if there are not exactly two classes.
    """
    classes = labels.unique()
    if len(classes) != 2:
        shown = ", ".join(f"{value:g}" for value in classes[:5].tolist()) + (", ..." if len(classes) > 5 else "")
        raise UserError(f"{path} must hold exactly 2 classes, got {len(classes)} ({shown}): take a binary data set")
    return torch.where(labels == classes[1], 1.0, -1.0).to(labels.dtype)


def _address(path: str) -> str | None:
    if _is_address(path):
        return path
    return _PAGE + _ON_PAGE[_plain(path)] if _plain(path) in _ON_PAGE else None


def _is_address(path: str) -> bool:
    return urlsplit(path).scheme in ("http", "https")


def _places(path: str) -> list[Path]:
    if _is_address(path):
        return [_cache() / _cached_name(path, path)]
    folders = [folder for folder in os.environ.get("TWINCLOCK_DATA", "").split(os.pathsep) if folder]
    given = Path(path).expanduser()
    return list(dict.fromkeys([given.absolute(), *(Path(folder) / given for folder in folders), _cache() / given]))


def _cached_name(path: str, address: str) -> str:
    name = Path(urlsplit(address).path).name
    if not _is_address(path):
        return name
    # Two addresses may end in the same name.
    return f"{hashlib.sha256(address.encode()).hexdigest()[:12]}-{name}"


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "twinclock"


def _plain(name: str) -> str:
    for suffix in _COMPRESSIONS:
        name = name.removesuffix(suffix)
    return name


def _spellings(place: Path) -> list[Path]:
    plain = _plain(place.name)
    return [place, *(place.with_name(plain + suffix) for suffix in ("", *_COMPRESSIONS))]


def _fetch(address: str, place: Path, field: str) -> Path:
    """Download to a temporary file beside `place`, then rename: no reader ever sees half a file."""
    partial = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with (
            urllib.request.urlopen(address, timeout=_SILENCE_S) as reply,
            tempfile.NamedTemporaryFile(dir=place.parent, prefix=".partial-", delete=False) as file,
        ):
            partial = Path(file.name)
            shutil.copyfileobj(reply, file)
        announced = reply.headers["Content-Length"]
        if announced is not None and int(announced) != partial.stat().st_size:
            raise OSError(f"the connection broke after {partial.stat().st_size} of {announced} bytes")
        partial.replace(place)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        raise UserError(
            f"{field}: {address} could not be fetched ({error}): check the network, or put the file at {place}"
        ) from error
    finally:
        if partial:
            partial.unlink(missing_ok=True)
    return place


def _parse(path: Path) -> tuple[Any, np.ndarray]:
    # Workers get tensors through shared memory and never need scikit-learn.
    from sklearn.datasets import load_svmlight_file  # noqa: PLC0415

    try:
        matrix, labels = load_svmlight_file(str(path), zero_based=True)
    except (ValueError, OSError, EOFError, OverflowError, zlib.error) as error:
        raise UserError(f"{path} cannot be read as LIBSVM text ({error}): fetch or convert it again") from error
    if not matrix.nnz:
        raise UserError(f"{path} holds no {'features' if len(labels) else 'samples'}: fetch or convert it again")
    if not (np.isfinite(matrix.data).all() and np.isfinite(labels).all()):
        raise UserError(f"{path} holds a value that is nan or infinite: clean or convert it again")
    return matrix, labels


def _rows(matrix: Any, base: int, num_features: int) -> SparseRows:
    return SparseRows(
        torch.from_numpy(matrix.indptr.astype(np.int64)),
        torch.from_numpy((matrix.indices - base).astype(np.int32)),
        torch.from_numpy(matrix.data.astype(np.float64)),
        num_features,
    )
