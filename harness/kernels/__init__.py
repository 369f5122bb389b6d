"""Native kernels: loops of per-sample updates on a flat model, compiled, without the interpreter's lock.

base.py     the Kernel, and the three functions that each defines
loop.py     the loop that runs a chunk of samples for real; the simulator has its own, over the same three functions
access.py   how updates get to a model that others write too: lock-free, atomically, under locks (locks.py)
numbers.py  how a coordinate is read and added to: floats, rounded numbers, replicas of the hottest coordinates
merge.py    the merge of a replica into a common model
native.py   what numba lacks
"""

from hashlib import sha256
from pathlib import Path

import numba


def _version() -> str:
    """Of the files here, and of the simulator's that are compiled with them.

    Numba looks only at the file of a cached function, not at what is compiled into it.
    """
    here = Path(__file__).parent
    simulated = here.parents[1] / "hardware" / "simulated"
    models = [simulated / "cache_lines.py", simulated / "core_cache.py", *simulated.glob("memory_*.py")]
    files = sorted([*here.glob("*.py"), *models])
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


numba.config.CACHE_DIR = str(Path(__file__).parent / "__pycache__" / _version())
