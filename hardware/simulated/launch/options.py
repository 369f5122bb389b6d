"""What the command line of the launcher says."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """One command.

    Args:
        hardware: a file of conf/hardware, or of the folder `hardware` in `config_dir`.
        config_dir: a folder of the user's, or None.
        overrides: of it.
        num_workers: ranks; None for what the file says.
        log_rank: the rank whose output is shown, or "all".
        timeline: the file to write, or empty.
        seed: of the jitter, and of random numbers that the script does not seed.
        script: to run.
        arguments: of the script.
    """

    hardware: str
    config_dir: Path | None
    overrides: list[str]
    num_workers: int | None
    log_rank: str
    timeline: str
    seed: int
    script: Path
    arguments: list[str]
