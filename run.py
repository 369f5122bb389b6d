"""python run.py algorithm=hogwild hardware=numa2: compose, build, run."""

import hydra
from omegaconf import DictConfig

from harness.cli import beginning, command_line


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> None:
    """Do one run; Hydra calls it once per job of a multirun."""
    with beginning():
        from harness.run import run  # noqa: PLC0415 - imports torch, which --help must not wait for

        run(config)


if __name__ == "__main__":
    command_line(main)
