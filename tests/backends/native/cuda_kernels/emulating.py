"""Builds kernels for a CPU, with emulated instructions, and calls them as kernels of one problem."""

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autotune.backends.native.cuda_kernels.cuda_kind import HERE as HEADERS
from autotune.backends.native.cuda_kernels.cuda_kind import launch_arguments
from autotune.records.kernel_problem import GemmProblem

HERE = Path(__file__).parent


class Emulated:
    """A compiled tile as a kernel of one problem."""

    def __init__(self, run: Any, problem: GemmProblem, splits: int) -> None:
        self._run, self._problem, self._splits = run, problem, splits
        self.resource_usage: dict[str, float] = {}

    def __call__(self, a: Any, b: Any, bias: Any, residual: Any, out: Any) -> None:
        order = launch_arguments(self._problem, (a, b, bias, residual, out), programmatic_launch=True)
        assert self._run(ctypes.byref(order), self._splits, None) == 0


def emulated(folder: Path, instructions: str, header: str, lines: Sequence[str]) -> ctypes.CDLL:
    """Compile lines that name kernels of a header, with emulated instructions."""
    text = [f'#include "{HERE / instructions}"', f'#include "{HEADERS / header}"', *lines]
    (folder / "tiles.cpp").write_text("\n".join(text))
    compiler = shutil.which("g++")
    assert compiler is not None, "the tests need g++"
    built = folder / "tiles.so"
    options = ["-std=c++20", "-O2", "-w", "-shared", "-fPIC", f"-I{HEADERS}"]
    subprocess.run([compiler, *options, str(folder / "tiles.cpp"), "-o", str(built)], check=True)
    return ctypes.CDLL(str(built))
