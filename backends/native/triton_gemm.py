"""Triton's GEMMs for few rows as a kind: how its plans are compiled, found again and launched."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autotune.backends.native.kind import check_operands
from autotune.backends.native.triton_kernels.ahead import CompiledKernel, Refused, TritonCache, TritonCompiler
from autotune.backends.native.triton_kernels.gemm import plan
from autotune.backends.native.triton_kernels.launch import LoadedPlan
from autotune.backends.native.triton_kernels.plan import Launch
from autotune.canonical import canonical, digest
from autotune.configuration import Configuration
from autotune.device import Device
from autotune.errors import SpaceError, WorkError
from autotune.kernel import Kernel, MadeKernel
from autotune.kernel_problem import GemmProblem
from autotune.search_spaces import triton_gemm


class TritonGemm:
    """Points of :mod:`autotune.search_spaces.triton_gemm`; a build has one launch only.

    What was packed for another place has its launches written beside its kernels, so that it loads without Triton, and
    with a later release of this package, which may plan otherwise.
    """

    def builds(self, device: Device, problem: GemmProblem) -> Sequence[Configuration]:
        """List the points; none for many rows, or where Triton serves the device not."""
        try:
            return tuple(triton_gemm.space(device, problem))
        except SpaceError:
            return ()

    def first(
        self, device: Device, problem: GemmProblem, count: int, *, multiprocessors: int
    ) -> Sequence[Configuration]:
        """Choose points that keep every multiprocessor busy."""
        return triton_gemm.first_candidates(device, problem, multiprocessors=multiprocessors, count=count)

    def launches(self, device: Device, problem: GemmProblem, build: Configuration) -> Sequence[Configuration]:
        """Nothing is left to choose at launch."""
        return (build,)

    def compile(
        self, device: Device, problem: GemmProblem, builds: Sequence[Configuration], folder: Path
    ) -> list[MadeKernel]:
        """Compile the kernels of each plan; raises WorkError where Triton is missing."""
        compiler, cache = TritonCompiler.find(device), TritonCache(folder)
        plans = [plan(problem, build) for build in builds]
        missing = [any(cache.get(compiler.key(source)) is None for source in made.sources) for made in plans]
        start = time.perf_counter()
        kernels = iter(cache.compile(compiler, [source for made in plans for source in made.sources]))
        share = (time.perf_counter() - start) / max(sum(missing), 1)
        answers = []
        for made, was_missing in zip(plans, missing, strict=True):
            found = [next(kernels) for _ in made.sources]
            refusal = next((kernel.detail for kernel in found if isinstance(kernel, Refused)), None)
            answers.append(MadeKernel(refusal=refusal, compile_s=share if was_missing else 0.0))
        return answers

    def load(self, device: Device, problem: GemmProblem, candidate: Configuration, folder: Path) -> Kernel:
        """Load a plan; raises WorkError where it is not compiled, or not for this GPU."""
        return _TritonKernel(_find(device, problem, candidate, folder), problem, device)

    def pack(
        self, device: Device, problem: GemmProblem, candidate: Configuration, folder: Path, target: Path
    ) -> Mapping[str, str]:
        """Copy the kernels of a plan, and write down its launches."""
        found = _find(device, problem, candidate, folder)
        target.mkdir(parents=True, exist_ok=True)
        names: dict[str, str] = {}
        for kernel in found.kernels:
            copied = kernel.copy_to(target)
            names |= {f"{copied.key}.{suffix}": copied.key for suffix in ("cubin", "json")}
        record = {
            "kernels": [kernel.key for kernel in found.kernels],
            "launches": [asdict(launch) for launch in found.launches],
            "workspace_bytes": found.workspace_bytes,
        }
        packed = _packed(device, problem, candidate, target)
        packed.write_text(canonical(record))
        return {**names, packed.name: digest(record)}


TRITON_GEMM = TritonGemm()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A plan whose kernels are compiled."""

    kernels: tuple[CompiledKernel, ...]
    launches: tuple[Launch, ...]
    workspace_bytes: int


class _TritonKernel:
    def __init__(self, found: _Found, problem: GemmProblem, device: Device) -> None:
        import torch

        self._problem = problem
        with torch.cuda.device(device.index):
            torch.cuda.current_stream().synchronize()  # makes the context that the kernels are loaded into
            self._plan = LoadedPlan(
                found.kernels, found.launches, workspace_bytes=found.workspace_bytes, device=device.index
            )

    @property
    def made(self) -> Mapping[str, float]:
        return self._plan.made

    def __call__(self, a: Any, b: Any, bias: Any, residual: Any, out: Any) -> None:
        import torch

        check_operands(self._problem, a, b, bias, residual, out)
        if self._problem.bias and bias is None:
            bias = torch.zeros(self._problem.n, dtype=torch.float32, device=out.device)
        given = {"a": a, "b": b, "bias": bias, "residual": residual, "out": out}
        self._plan({name: tensor for name, tensor in given.items() if tensor is not None})


def _find(device: Device, problem: GemmProblem, candidate: Configuration, folder: Path) -> _Found:
    """Find a plan that was packed, else one that was compiled with the Triton that is installed."""
    packed = _packed(device, problem, candidate, folder)
    if packed.is_file():
        record = json.loads(packed.read_text())
        return _Found(
            kernels=tuple(CompiledKernel(key=key, folder=folder) for key in record["kernels"]),
            launches=tuple(Launch.from_dict(launch) for launch in record["launches"]),
            workspace_bytes=int(record["workspace_bytes"]),
        )
    made, compiler, cache = plan(problem, candidate), TritonCompiler.find(device), TritonCache(folder)
    kernels = [cache.get(compiler.key(source)) for source in made.sources]
    compiled = tuple(kernel for kernel in kernels if isinstance(kernel, CompiledKernel))
    if len(compiled) < len(kernels):
        raise WorkError(
            f"loading the kernel {candidate} for {problem.canonical}", found=f"it is not compiled in {folder}",
            expected="a kernel that was compiled before it is loaded", run="autotune kernels tune for its problem",
        )  # fmt: skip
    return _Found(kernels=compiled, launches=made.launches, workspace_bytes=made.workspace_bytes)


def _packed(device: Device, problem: GemmProblem, candidate: Configuration, folder: Path) -> Path:
    which = {"problem": problem.as_dict(), "candidate": candidate.as_dict(), "capability": device.capability}
    return folder / f"{digest(which)}.plan"
