"""python -m experiments.lost_updates hardware=cpu budget.epochs=5: count, and print one JSON line."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.cli import MISTAKES, composed, leave, sentence

DESCRIPTION = """\
Count the additions that a run without locks loses, real or simulated, with the settings of run.py:

  python -m experiments.lost_updates hardware=cpu problem.synthetic_samples=20000 budget.epochs=5

The run is repeated with 1 added wherever it adds a gradient, to counters that begin at 0: same rows, order, workers,
chunks, locking, sharing and memory. What the counters lack at the end has been overwritten. A counting update reads and
writes the coordinates of a real one, but has no row values to fetch and to multiply: it is a little faster, so that
workers meet a little more often. Prints one JSON line."""


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    known = _parser().parse_intermixed_args(arguments)
    try:
        config = composed(["algorithm=hogwild", "tracking=none", *known.overrides], known.config_dir, as_hydra=True)
        from experiments.lost_updates.counting import count  # noqa: PLC0415 - torch, which --help must not wait for
        from harness.check import check  # noqa: PLC0415
        from harness.setup import compose  # noqa: PLC0415

        setup, _ = check(compose(config))
        found = count(setup)
    except KeyboardInterrupt:
        print("interrupted: nothing was counted", file=sys.stderr)
        leave(130)
    except MISTAKES as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 1
    chosen = {name: getattr(setup.algorithm, name, None) for name in ("sharing", "locking")}
    who = {"hardware": setup.choices["hardware"], "workers": setup.num_workers}
    print(json.dumps({"experiment": "lost_updates", **who, **chosen, **found}))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m experiments.lost_updates",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, as of run.py")
    parser.add_argument("--config-dir", type=Path, help="a folder with groups, and modules, of your own")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
