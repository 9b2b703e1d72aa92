"""Lists the programs: ``python -m autotune.programs``."""

import argparse
import sys
from collections.abc import Sequence

from autotune import standard_streams
from autotune.programs.catalogue import PACKAGE, PROGRAMS, command_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each program, and return the exit code."""
    argparse.ArgumentParser(
        prog=f"python -m {PACKAGE}", description="Lists the programs that measure autotune itself."
    ).parse_args(arguments)
    width = max(len(command_of(name)) for name in PROGRAMS)
    for name, description in PROGRAMS.items():
        sys.stdout.write(f"{command_of(name):<{width}}  {description}\n")
    return 0


if __name__ == "__main__":
    standard_streams.run(main)
