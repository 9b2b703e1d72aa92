"""Compare two machines: tune on each, bring the records together, and print one table.

On real machines run the first command on each of them, and the others on the one that compares::

    autotune tune study.yaml --db here.db
    autotune db export mlp --out there.zip --db there.db      # on the other machine; then copy there.zip
    autotune db merge there.zip --db here.db
    autotune compare mlp --db here.db

This file does the same on one host. A plan belongs to a device class, and the class of a CPU counts the cores that a
process may use; so the host with all of its cores and with one of them stand for two machines::

    python examples/compare_machines.py --budget 5s
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

MODEL = """
import torch

def mlp():
    return torch.nn.Sequential(torch.nn.Linear(512, 2048), torch.nn.GELU(), torch.nn.Linear(2048, 512)).eval()
"""
STUDY = """
name: mlp
model: {factory: model.py:mlp}
inputs: [{name: input, shape: [batch, 512], dtype: float32}]
batch: [16]
device: cpu
space: {backends: [eager, onnxruntime], precision: [fp32]}
"""


def autotune(*arguments: str, cores: set[int] | None = None) -> None:
    """Run a command of autotune, on some of the cores."""
    print("$ autotune", *arguments, flush=True)
    command = [sys.executable, "-m", "autotune.cli.main", *arguments]
    limit = None if cores is None else lambda: os.sched_setaffinity(0, cores)
    if code := subprocess.run(command, preexec_fn=limit, check=False).returncode:
        sys.exit(code)


def main() -> None:
    """Tune under two device classes, merge and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", default="30s", help="time of active search on each machine")
    options = parser.parse_args()
    cores = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("model.py").write_text(MODEL)
        Path("study.yaml").write_text(STUDY)
        autotune("tune", "study.yaml", "--budget", options.budget, "--db", "here.db")
        autotune("tune", "study.yaml", "--budget", options.budget, "--db", "there.db", cores={min(cores)})
        autotune("db", "export", "mlp", "--out", "there.zip", "--db", "there.db")
        autotune("db", "merge", "there.zip", "--db", "here.db")
        autotune("compare", "mlp", "--db", "here.db")
        os.chdir("/")  # the folder is deleted


if __name__ == "__main__":
    main()
