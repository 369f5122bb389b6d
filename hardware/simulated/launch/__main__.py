"""python -m hardware.simulated.launch --hardware sim_ethernet --num-workers 8 train.py --epochs 1."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from hardware.simulated.launch.options import Options
from hardware.simulated.launch.output import OutputClosed
from harness.build import build
from harness.cli import MISTAKES, composed, sentence
from harness.errors import UserError

DESCRIPTION = """\
Run a script that uses torch.distributed, unmodified, as all ranks of a simulated machine, in virtual time.

The script finds RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and so on in its environment; init_process_group lands on the
simulator whatever backend it names; the time module, timeit and logging tell the script and installed packages virtual
time (datetime does not; what the standard library and torch.compile wait for themselves is the host's). It computes on
the device cpu, simulated GPUs too; torch.cpu.synchronize waits for them. torch.compile compiles nothing, but where
hardware/compute=measured. Threads that the script starts find no process group, nor virtual time."""


def parse(arguments: Sequence[str]) -> Options:
    """Read the command line; what stands before the script and has an `=` is an override of the hardware."""
    options, overrides, rest = _split(arguments)
    known = _parser().parse_args(options)
    if not rest:
        _parser().error("name a script")
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
    if known.config_dir is not None and not known.config_dir.is_dir():
        raise UserError(f"--config-dir {known.config_dir}: there is no such folder")
    if known.hardware.endswith(".yaml"):
        raise UserError(
            f"--hardware must be a name without .yaml, got {known.hardware}: a file of your own is "
            "DIR/hardware/mine.yaml for --config-dir DIR --hardware mine"
        )
    return Options(
        hardware=known.hardware,
        config_dir=known.config_dir,
        overrides=overrides,
        num_workers=known.num_workers,
        log_rank=known.log_rank,
        timeline=known.timeline,
        seed=known.seed,
        script=script,
        arguments=rest[1:],
    )


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Options, which take a value each, and overrides, in any order; then the script and what is the script's.

    >>> _split(["--seed", "1", "hardware.num_workers=2", "train.py", "--lr=1"])
    (['--seed', '1'], ['hardware.num_workers=2'], ['train.py', '--lr=1'])
    """
    options, overrides, rest = list[str](), list[str](), list(arguments)
    while rest and (rest[0].startswith("-") or "=" in rest[0]):
        first = rest.pop(0)
        if first == "--":
            break
        if not first.startswith("-"):
            overrides.append(first)
            continue
        options.append(first)
        if rest and "=" not in first and first not in ("-h", "--help"):
            options.append(rest.pop(0))
    return options, overrides, rest


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m hardware.simulated.launch",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [options] [hardware.key=value ...] script.py [arguments of the script ...]",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--hardware", default="sim_ethernet", help="a file of conf/hardware (default: %(default)s)")
    add("--config-dir", type=Path, help="a folder of yours: DIR/hardware/mine.yaml is --config-dir DIR --hardware mine")
    add("--num-workers", type=int, help="ranks (default: what the file says)")
    add("--log-rank", default="0", help="whose output is shown: a rank, or all (default: %(default)s)")
    add(
        "--timeline",
        default="timeline.pt.trace.json.gz",
        help="file for ui.perfetto.dev, '' for none (default: %(default)s)",
    )
    add(
        "--seed", type=int, default=0, help="of the jitter, and of what the script does not seed (default: %(default)s)"
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    try:
        options = parse(arguments)
        overrides = [f"hardware={options.hardware}", *options.overrides]
        if options.num_workers is not None:
            overrides.append(f"hardware.num_workers={options.num_workers}")
        node = composed(overrides, options.config_dir).hardware
        from hardware.simulated.launch.run import run  # noqa: PLC0415 - imports torch, which --help must not wait for

        return run(build(node, "hardware"), options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except OutputClosed:
        return 128 + signal.SIGPIPE
    except MISTAKES as error:
        print(getattr(error, "details", ""), f"error: {sentence(error)}", sep="", file=sys.stderr)
        return int(getattr(error, "status", 1))


if __name__ == "__main__":
    exit_status = main(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # such as `head` has gone: leave as quietly as other tools do
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(exit_status)
