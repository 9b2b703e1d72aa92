"""Runs plans by Triton's interpreter: ``python interpreted.py ORDERS ANSWERS``, with TRITON_INTERPRET=1.

ORDERS is a file of ``torch.save``: a list of (plan, buffers); every buffer comes back as the launches leave it.
"""

import importlib.util
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from autotune.backends.native.triton_kernels.launch_plan import LaunchPlan

Buffers = dict[str, Any]


def interpret(orders: list[tuple[LaunchPlan, Buffers]], folder: Path) -> list[Buffers]:
    """Run plans on the CPU, in a process of its own, and give their buffers afterwards."""
    asked, answers = folder / "orders", folder / "answers"
    asked.write_bytes(pickle.dumps(orders))
    variables = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, __file__, str(asked), str(answers)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found: list[Buffers] = pickle.loads(answers.read_bytes())
    return found


def _run(plan: LaunchPlan, buffers: Buffers, folder: Path) -> None:
    import torch

    known = {**buffers, "workspace": torch.full((plan.workspace_bytes // 4,), float("nan"))}
    for launch in plan.launches:
        source = plan.sources[launch.kernel]
        path = folder / f"{source.digest}.py"
        path.write_text(source.code)
        spec = importlib.util.spec_from_file_location(f"kernel_{source.digest}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        arguments = {name: known[value] if isinstance(value, str) else value for name, value in launch.arguments}
        getattr(module, source.function)[launch.grid](**arguments, **dict(source.constants))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        orders = pickle.loads(Path(sys.argv[1]).read_bytes())
        for one, given in orders:
            _run(one, given, Path(scratch))
    Path(sys.argv[2]).write_bytes(pickle.dumps([given for _, given in orders]))
