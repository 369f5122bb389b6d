"""python -m hardware.simulated.launch --hardware sim_ethernet --num-workers 8 train.py --epochs 1."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hardware.simulated.launch.options import Options
from harness.build import build
from harness.cli import MISTAKES, composed, sentence
from harness.errors import UserError

DESCRIPTION = """\
Run a script that uses torch.distributed, unmodified, as all ranks of a simulated machine, in virtual time.

The script finds RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and so on in its environment; init_process_group lands on the
simulator whatever backend it names; the time module reads and spends virtual time (datetime does not). Threads that the
script starts find no process group."""


def parse(arguments: Sequence[str]) -> Options:
    """Read the command line; what stands before the script and has an `=` is an override of the hardware."""
    parser = argparse.ArgumentParser(
        "python -m hardware.simulated.launch",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="%(prog)s [options] [hardware.key=value ...] script.py [arguments of the script ...]",
    )
    parser.add_argument("--hardware", default="sim_ethernet", help="a file of conf/hardware (default: %(default)s)")
    parser.add_argument("--num-workers", type=int, help="ranks (default: what the file says)")
    parser.add_argument("--log-rank", default="0", help="whose output is shown: a rank, or all (default: %(default)s)")
    parser.add_argument(
        "--timeline",
        default="timeline.pt.trace.json.gz",
        help="file for ui.perfetto.dev, '' for none (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the jitter, and of what the script does not seed (default: %(default)s)"
    )
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    known, rest = argparse.Namespace(), list(arguments)
    overrides: list[str] = []
    while True:  # options and overrides in any order
        known.rest = []
        parser.parse_args(rest, known)
        first = next((i for i, argument in enumerate(known.rest) if not _is_override(argument)), len(known.rest))
        overrides, rest = overrides + known.rest[:first], known.rest[first:]
        if rest[:1] == ["--"]:
            rest = rest[1:]
            break
        if not (rest and rest[0].startswith("-")):
            break
    if not rest:
        parser.error("name a script")
    script = Path(rest[0])
    if not script.is_file():
        raise UserError(f"script {script} does not exist: name a Python file")
    for override in overrides:
        if not override.lstrip("+~").startswith("hardware"):
            raise UserError(
                f"{override} does not describe the hardware: overrides begin with hardware, and what the script takes "
                "comes after its name"
            )
    if known.num_workers is not None and any(one.startswith("hardware.num_workers=") for one in overrides):
        raise UserError("--num-workers and hardware.num_workers say the same: give one of them")
    if known.seed < 0:
        raise UserError(f"--seed must be >= 0, got {known.seed}")
    if known.log_rank != "all" and not known.log_rank.isdecimal():
        raise UserError(f"--log-rank must be a rank or all, got {known.log_rank}")
    return Options(
        hardware=known.hardware,
        overrides=overrides,
        num_workers=known.num_workers,
        log_rank=known.log_rank,
        timeline=known.timeline,
        seed=known.seed,
        script=script,
        arguments=rest[1:],
    )


def _is_override(argument: str) -> bool:
    return "=" in argument and not argument.startswith("-")


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    try:
        options = parse(arguments)
        overrides = [f"hardware={options.hardware}", *options.overrides]
        if options.num_workers is not None:
            overrides.append(f"hardware.num_workers={options.num_workers}")
        node = composed(overrides).hardware
        from hardware.simulated.launch.run import run  # noqa: PLC0415 - imports torch, which --help must not wait for

        return run(build(node, "hardware"), options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except MISTAKES as error:
        print(getattr(error, "details", ""), f"error: {sentence(error)}", sep="", file=sys.stderr)
        return int(getattr(error, "status", 1))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
