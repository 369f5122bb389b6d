"""python -m harness.calibrate memory: measure this machine, for the simulator."""

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.calibrate.constant import NOISY, Constant
from harness.errors import TwinclockError, require

DESCRIPTION = """\
Measure this machine, and write device files with which the simulator predicts it.

memory: caches, sockets, locks and native kernels, on two cores at a time, in some seconds. Measure on a machine
that does nothing else; `chrt -f 50` before the command keeps others away from the cores, where one may use it."""


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    known = _parser().parse_args(arguments)
    try:
        require(known.name.isidentifier(), "--name", "must be a name of letters, digits and underscores", known.name)
        from harness.calibrate.files import check_folder, write  # noqa: PLC0415

        check_folder(known.output)  # before anything is measured
        found = _measured()
        paths = write(known.output, known.name, f"{_model()}, measured {datetime.date.today()}", found)
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    except TwinclockError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if warning := _warning(found):
        print(f"\n{warning}", file=sys.stderr)
    print(f"\nwrote {' and '.join(str(path) for path in paths)}; to use them:")
    sockets = next(constant.value for constant in found if constant.name == "sockets")
    machine = "sim_cpu" if sockets == 1 else "sim_numa2"  # the former is one socket, whatever the file says
    chosen = f"hardware={machine} hardware.num_workers=2 hardware/memory={known.name} hardware/compute={known.name}"
    print(f"  python run.py --config-dir {known.output} algorithm=hogwild {chosen}")
    return 0


def _measured() -> list[Constant]:
    """Every constant, shown as it comes."""
    from hardware.real.topology import read_topology  # noqa: PLC0415 - imports torch, which --help must not wait for
    from harness.calibrate import core, memory  # noqa: PLC0415

    topology, found = read_topology(), list[Constant]()
    for part in (memory.constants(topology), core.constants(topology.cores[0].cpus[0])):
        for constant in part:
            found.append(constant)
            value = constant.value if isinstance(constant.value, int) else f"{constant.value:.3g}"
            spread = "" if constant.spread is None else f"{100 * constant.spread:.0f} %"
            print(f"{constant.name:22s} {value!s:>10s} {spread:>6s}  {constant.how}", flush=True)
    return found


def _warning(found: Sequence[Constant]) -> str:
    """What to do about constants whose repetitions lie too far apart; empty if there are none."""
    noisy = [constant.name for constant in found if constant.spread is not None and constant.spread > NOISY]
    if not noisy:
        return ""
    return (
        f"warning: repetitions of {', '.join(noisy)} differ by more than {100 * NOISY:.0f} %: this machine is too busy "
        "to trust them; measure again when nothing else runs, or with chrt -f 50 before the command"
    )


def _model() -> str:
    """What the kernel calls this machine's processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "this machine")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m harness.calibrate", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("what", choices=["memory"], help="what to measure")
    add("--output", type=Path, default=Path("calibrated"), help="a folder for --config-dir (default: %(default)s)")
    add("--name", default="this_machine", help="of the device files (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
