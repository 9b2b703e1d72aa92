"""Runs plans by Triton's interpreter, in processes that are forked from one that has imported Triton already.

``python interpreted.py``, with TRITON_INTERPRET=1, reads lines of three paths, ORDERS, ANSWERS and LOG, and writes the
exit status of the process that did each. ORDERS is a pickled list of (plan, buffers); ANSWERS has every buffer as the
launches leave it.
"""

import atexit
import functools
import importlib.util
import os
import pickle
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from autotune.backends.native.triton_kernels.launch_plan import LaunchPlan

Buffers = dict[str, Any]


def interpret(orders: list[tuple[LaunchPlan, Buffers]], folder: Path) -> list[Buffers]:
    """Run plans on the CPU, in a process of their own, and give their buffers afterwards."""
    asked, answers, log = folder / "orders", folder / "answers", folder / "interpreter.log"
    answers.unlink(missing_ok=True)
    asked.write_bytes(pickle.dumps(orders))
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    print(asked, answers, log, sep="\t", file=server.stdin, flush=True)
    status = server.stdout.readline().strip()
    assert status == "0", f"exit status {status or 'unknown'}: {log.read_text()[-4000:] if log.exists() else ''}"
    found: list[Buffers] = pickle.loads(answers.read_bytes())
    return found


@functools.cache
def _server() -> "subprocess.Popen[str]":
    """Start the process that has Triton, once for all tests of this process: the import takes a second or two."""
    variables = {**os.environ, "TRITON_INTERPRET": "1"}
    server = subprocess.Popen(
        [sys.executable, __file__], env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(server.communicate)  # closes its input, at which it ends
    return server


def _serve() -> None:
    """Fork a process for each line until the tests end."""
    import torch  # noqa: F401
    import triton.language  # noqa: F401

    while line := sys.stdin.readline():
        asked, answers, log = line.rstrip("\n").split("\t")
        child = os.fork()
        if not child:
            with Path(log).open("w") as written:
                os.dup2(written.fileno(), 1)
                os.dup2(written.fileno(), 2)
            os._exit(_answer(Path(asked), Path(answers)))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _answer(asked: Path, answers: Path) -> int:
    try:
        orders = pickle.loads(asked.read_bytes())
        with tempfile.TemporaryDirectory() as scratch:
            for plan, buffers in orders:
                _run(plan, buffers, Path(scratch))
        answers.write_bytes(pickle.dumps([buffers for _, buffers in orders]))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        return 1
    return 0


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
    _serve()
