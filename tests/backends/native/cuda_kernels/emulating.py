"""Builds kernels for a CPU, with emulated instructions and an emulated driver that our own launcher calls."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from autotune.backends.native.cuda_driver import CudaDriver
from autotune.backends.native.cuda_kernels.cubin_cache import CompiledKernel, KernelRecord
from autotune.backends.native.cuda_kernels.cuda_kind import CudaKind
from autotune.backends.native.cuda_kernels.kernel_source import HERE as HEADERS
from autotune.backends.native.cuda_kernels.kernel_source import KernelSource
from autotune.backends.native.cuda_kernels.launch_arguments import ABI
from autotune.backends.native.cuda_kernels.loaded_gemm import LoadedGemm
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem

HERE = Path(__file__).parent
DEVICE = Device(kind="cuda", name="Emulated GPU", uuid="gpu", capability=(9, 0))


class EmulatedKernels:
    """Kernels of one kind whose code runs on this CPU."""

    def __init__(self, kind: CudaKind, driver: CudaDriver, folder: Path) -> None:
        self._kind, self._driver, self._folder = kind, driver, folder

    def load(self, source: KernelSource, problem: GemmProblem, splits: int) -> LoadedGemm:
        code = b"\x7fELF of a CPU"
        record = KernelRecord(
            abi=ABI, build=source.build, function=source.function, threads=source.threads,
            shared_bytes=source.shared_bytes, registers=0, spilled_bytes=0, compiler="g++", cuda=(13, 0),
            cubin_sha256=hashlib.sha256(code).hexdigest(),
        )  # fmt: skip
        name = f"{source.build.key}.{source.key}"
        (self._folder / f"{name}.cubin").write_bytes(code)
        (self._folder / f"{name}.json").write_text(json.dumps(record.as_dict()))
        candidate = Configuration.of(source.build.kind, {**dict(source.build.tile.values), "splits": splits})
        compiled = CompiledKernel(folder=self._folder, name=name)
        return self._kind.loaded(compiled, problem, candidate, DEVICE, programmatic_launch=True, on=self._driver)


def emulated(
    folder: Path, instructions: str, kind: CudaKind, parameter: str, sources: Sequence[KernelSource]
) -> EmulatedKernels:
    """Compile kernels with emulated instructions; ``parameter`` is the type of what they take."""
    text = [f'#include "{HERE / instructions}"', f'#include "{HEADERS / kind.header}"']
    for source in sources:
        text += [source.text.splitlines()[1], f"EMULATE({source.function}, {parameter})"]
    (folder / "tiles.cpp").write_text("\n".join(text))
    compiler = shutil.which("g++")
    assert compiler is not None, "the tests need g++"
    built = folder / "tiles.so"
    options = ["-std=c++20", "-O2", "-w", "-shared", "-fPIC", f"-I{HEADERS}"]
    subprocess.run([compiler, *options, str(folder / "tiles.cpp"), "-o", str(built)], check=True)
    return EmulatedKernels(kind, CudaDriver(str(built)), folder)
