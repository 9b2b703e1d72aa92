"""The instructions of compiled kernels, and the times of calls on a GPU."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from autotune.backends.native.triton_kernels.triton_compiler import CompiledCubin


def instructions(kernel: CompiledCubin, option: str) -> str:
    """What cuobjdump prints of a kernel; the test is skipped if Triton came without it."""
    triton = pytest.importorskip("triton")
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not program.is_file():
        pytest.skip("this release of Triton comes without cuobjdump")
    command = [str(program), option, str(kernel.folder / f"{kernel.key}.cubin")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def recorded(call: Callable[[], object], repeats: int = 20) -> torch.cuda.CUDAGraph:
    """A CUDA graph of several calls."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            call()
    return graph


def seconds(graph: torch.cuda.CUDAGraph) -> float:
    """The time of one replay."""
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    graph.replay()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1e3
