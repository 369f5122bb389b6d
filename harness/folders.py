"""Where options are: in conf/, and after it, as for Hydra, in a user's own folders that the command line names.

Hydra knows them too, once it has composed; what could not be composed is explained before.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

CONF = Path(__file__).parents[1] / "conf"


def folders(arguments: Sequence[str]) -> list[Path]:
    """All of them, a user's own last.

    >>> folders(["--config-dir", "mine", "+hydra.searchpath=['file:///ours', pkg://theirs]"])[1:]
    [PosixPath('mine'), PosixPath('/ours')]
    """
    own: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        name, _, value = argument.partition("=")
        if before in ("--config-dir", "-cd"):
            own.append(argument)
        elif value and name in ("--config-dir", "-cd"):
            own.append(value)
        elif name.lstrip("+") == "hydra.searchpath":
            paths = re.findall(r"[^\[\],\s'\"]+", value)
            own += [path.removeprefix("file://") for path in paths if not path.startswith("pkg://")]
    return [CONF, *map(Path, own)]


def found(pattern: str) -> list[Path]:
    """What is in them, such as "algorithm/*.yaml", a user's own last."""
    return [path for folder in folders(sys.argv[1:]) for path in sorted(folder.glob(pattern))]
