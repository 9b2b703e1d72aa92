"""Two processes share a tuning database: one of them searches, both use the same plan.

The database is a SQLite file on a local disk, or PostgreSQL if several machines share it::

    python examples/team_database.py --budget 20s --db team.db
    python examples/team_database.py --budget 20s --db postgresql://user:password@host/autotune

For PostgreSQL install the extra ``postgres``; the database must exist, and the first user makes its tables.
"""

import argparse
import subprocess
import sys
import time

import torch

import autotune
from autotune.errors import StudyHeldError


def member(name: str, budget: str, db: str, backends: tuple[str, ...] | None) -> None:
    """Do what each member of the team does: use the plan of a model, and search only if nobody has."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(512, 2048), torch.nn.GELU(), torch.nn.Linear(2048, 512)).eval()
    inputs = torch.randn(8, 512)
    waited = False
    while True:
        try:
            fast = autotune.optimize(model, inputs, name="mlp", budget=budget, db=db, backends=backends)
            break
        except StudyHeldError as held:  # another process searches at this moment
            if not waited:
                print(f"{name} waits: {held.asked}", flush=True)
            waited = True
            time.sleep(2)
    print(f"{name} uses plan {fast.plan.uid[:8]}: {fast}", flush=True)
    fast.close()


def main() -> None:
    """Start two members at the same time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", default="1m", help="time of active search (the finals come on top)")
    parser.add_argument("--db", default="team.db", help="a path, or a URL such as postgresql://user@host/autotune")
    parser.add_argument("--backends", type=lambda names: tuple(names.split(",")), help="such as eager,onnxruntime")
    parser.add_argument("--member", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.member:
        member(options.member, options.budget, options.db, options.backends)
        return
    command = [sys.executable, *sys.argv, "--member"]
    members = [subprocess.Popen([*command, name]) for name in ("first", "second")]
    codes = [process.wait() for process in members]
    sys.exit(max(codes))


if __name__ == "__main__":
    main()
