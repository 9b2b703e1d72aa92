"""Kernels compiled by nvcc into libraries of plain C functions: several to a unit, side by side, kept by content.

A kernel's key is the digest of its source, our headers, the flags and the architecture; kernels of different releases
of CUTLASS are in different folders. A kernel that was compiled under a key is never compiled again, by any release of
nvcc; a refusal is cached for the release of nvcc that refused. Neither loading a library nor its key needs nvcc or
CUTLASS's headers.
"""

import contextlib
import hashlib
import importlib.util
import os
import re
import subprocess
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import metadata
from pathlib import Path

from autotune import environment
from autotune.errors import WorkError
from autotune.runtime.host_memory import HostMemory
from autotune.runtime.installed import install_command
from autotune.scratch import ScratchFolder

KERNELS_A_UNIT = 4
"""Parsing CUTLASS's headers takes 14 s: four kernels take 63 s in one unit, and 4 times 40 s in four units."""

BYTES_A_UNIT, BYTES_A_KERNEL = 2.8e9, 0.63e9
"""Memory of nvcc at its peak, measured on CUTLASS kernels for sm_90a: 3.4 GB for one kernel, 7.8 GB for eight."""

TIMEOUT_S = 900.0
KEPT_CHARACTERS = 2000
FLAGS = ("-O3", "-std=c++17", "--expt-relaxed-constexpr", "-DNDEBUG", "-Xcompiler", "-fPIC", "-shared")
"""Without NDEBUG ptxas serialises the tensor cores' instructions of sm_90a."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaSource:
    """The source of one kernel, in which ``{name}`` is replaced by the prefix of its functions' names.

    ``header`` is the path of the header that it includes, which may include other headers of its folder. All kernels of
    a unit have the same header.
    """

    header: Path
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledCudaKernel:
    """A kernel in a shared library: its functions are ``<name>_run``, ``<name>_workspace_bytes``, ``<name>_made``.

    ``compile_s`` is its share of the time of the units that it was compiled in, 0 if it was in the cache.
    """

    key: str
    library: Path
    compile_s: float = field(default=0.0, compare=False)

    @property
    def name(self) -> str:
        """The prefix of its functions' names."""
        return name_of(self.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class NvccRefusal:
    """A kernel that the compiler refuses, with the compiler's output from its first error on."""

    key: str
    detail: str
    compile_s: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class NvccCompiler:
    """An nvcc with its include folders, for one architecture such as ``90a``."""

    nvcc: Path
    version: str
    includes: tuple[Path, ...]
    headers_version: str
    architecture: str

    @classmethod
    def bare(cls, architecture: str) -> "NvccCompiler":
        """Find nvcc, for kernels that need no headers but its own; raises WorkError if it is missing."""
        action = f"compiling a kernel for sm_{architecture}"
        nvcc = environment.nvcc()
        if nvcc is None:
            raise WorkError(
                action, found="no nvcc on PATH, and no variable NVCC",
                expected="the CUDA toolkit's compiler; kernels that are compiled already do not need it",
                run="install the CUDA toolkit, or name its compiler: NVCC=/usr/local/cuda/bin/nvcc",
            )  # fmt: skip
        try:
            output = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
        except OSError as error:
            output = str(error)
        version = re.search(r"V(\d+\.\d+\.\d+)", output)
        if version is None:
            raise WorkError(
                action, found=f"{nvcc} --version, which printed {output[-200:]!r}", expected="NVIDIA's nvcc",
                run="NVCC=/path/to/nvcc and the same command",
            )  # fmt: skip
        return cls(nvcc=Path(nvcc), version=version[1], includes=(), headers_version="none", architecture=architecture)

    @classmethod
    def find(cls, architecture: str) -> "NvccCompiler":
        """Find nvcc and CUTLASS's headers; raises WorkError if one of them is missing."""
        bare = cls.bare(architecture)
        spec = importlib.util.find_spec("cutlass_library")
        if spec is None or spec.origin is None:
            raise WorkError(
                f"compiling a kernel for sm_{architecture}", found="no CUTLASS headers",
                expected="the package nvidia-cutlass", run=install_command("native"),
            )  # fmt: skip
        source = Path(spec.origin).parent / "source"
        includes = source / "include", source / "tools" / "util" / "include"
        return replace(bare, includes=includes, headers_version=metadata.version("nvidia-cutlass"))

    @property
    def flags(self) -> tuple[str, ...]:
        """The arguments of nvcc besides files and folders."""
        return flags(self.architecture)


def flags(architecture: str) -> tuple[str, ...]:
    """Return the arguments of nvcc for an architecture besides files and folders."""
    return (*FLAGS, f"-gencode=arch=compute_{architecture},code=sm_{architecture}")


def key_of(kernel: CudaSource, architecture: str) -> str:
    """Return the digest of all files and options of ours that decide a kernel's code."""
    parts = (kernel.code, kernel.header.name, _headers(kernel.header.parent), *flags(architecture))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@cache
def _headers(folder: Path) -> str:
    """Return names and texts of our headers in a folder; installed files do not change while a process runs."""
    beside = sorted(path for path in folder.iterdir() if path.suffix in (".h", ".cuh"))
    return "\0".join(f"{path.name}\0{path.read_text()}" for path in beside)


class NvccCache:
    """A folder of compiled kernels; several processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str, *, nvcc: str = "") -> CompiledCudaKernel | NvccRefusal | None:
        """Return the kernel of a key, else the refusal by this release of nvcc, else ``None``."""
        library = self.folder / f"{key}.so"
        if library.is_file():
            return CompiledCudaKernel(key=key, library=library)
        with contextlib.suppress(FileNotFoundError):
            return NvccRefusal(key=key, detail=_refusal(self.folder, key, nvcc).read_text())
        return None

    def compile(
        self, compiler: NvccCompiler, kernels: Sequence[CudaSource], *, at_once: int | None = None,
        a_unit: int = KERNELS_A_UNIT,
    ) -> list[CompiledCudaKernel | NvccRefusal]:  # fmt: skip
        """Compile the kernels that are not in the cache, at most ``a_unit`` in one unit; returns all, in their order.

        A unit that fails is compiled again one kernel at a time, so that each refusal has its kernel. Raises WorkError
        if nvcc itself fails: killed, or out of time.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        keys = [key_of(kernel, compiler.architecture) for kernel in kernels]
        missing = {
            key: kernel
            for key, kernel in zip(keys, kernels, strict=True)
            if self.get(key, nvcc=compiler.version) is None
        }
        spent = dict.fromkeys(keys, 0.0)
        by_header: dict[Path, list[str]] = {}
        for key, kernel in missing.items():
            by_header.setdefault(kernel.header, []).append(key)
        together = min(a_unit, -(-len(missing) // (at_once or units_at_once(1))))  # every core gets a unit
        units = [
            tuple(same[first : first + together])
            for same in by_header.values()
            for first in range(0, len(same), together)
        ]
        with ThreadPoolExecutor(at_once or units_at_once(together)) as pool:
            done = pool.map(lambda unit: self._unit(compiler, missing, unit, spent), units)
            failed = [key for unit in done for key in unit]
        with ThreadPoolExecutor(at_once or units_at_once(1)) as pool:
            for _ in pool.map(lambda key: self._unit(compiler, missing, (key,), spent, alone=True), failed):
                pass
        return [replace(self._kept(key, compiler), compile_s=spent[key]) for key in keys]

    def _kept(self, key: str, compiler: NvccCompiler) -> CompiledCudaKernel | NvccRefusal:
        kernel = self.get(key, nvcc=compiler.version)
        if kernel is None:
            raise WorkError(
                f"kernel {key} was compiled into {self.folder}", found="nothing under its key",
                expected="a folder that no other program empties meanwhile", run="the same command",
            )  # fmt: skip
        return kernel

    def _unit(
        self, compiler: NvccCompiler, kernels: dict[str, CudaSource], keys: tuple[str, ...], spent: dict[str, float], *,
        alone: bool = False,
    ) -> tuple[str, ...]:  # fmt: skip
        """Compile some kernels of one header into one library; returns those that have to be compiled alone."""
        start = time.perf_counter()
        header = kernels[keys[0]].header
        code = [kernels[key].code.replace("{name}", name_of(key)) for key in keys]
        with ScratchFolder("unit", self.folder) as scratch:
            unit, library = scratch / "unit.cu", scratch / "unit.so"
            unit.write_text("\n".join([f'#include "{header.name}"', *code]) + "\n")
            includes = [f"-I{folder}" for folder in (header.parent, *compiler.includes)]
            refusal = _run([str(compiler.nvcc), *compiler.flags, *includes, str(unit), "-o", str(library)])
            for key in keys:
                spent[key] += (time.perf_counter() - start) / len(keys)
            if refusal is not None:
                if not alone and len(keys) > 1:
                    return keys
                for key in keys:
                    _appear(_refusal(self.folder, key, compiler.version), refusal, scratch)
                return ()
            for key in keys:  # a library of several kernels is one file under several names
                own = scratch / key
                os.link(library, own)
                os.replace(own, self.folder / f"{key}.so")
        return ()


def name_of(key: str) -> str:
    """Return the prefix of a kernel's functions' names: distinct in a unit, and of a reasonable length."""
    return f"kernel_{key[:16]}"


def units_at_once(kernels: int) -> int:
    """Return the number of units of ``kernels`` kernels that compile in parallel: limited by cores and by memory."""
    fit = HostMemory.read().available_bytes // (BYTES_A_UNIT + kernels * BYTES_A_KERNEL)
    return max(1, min(len(os.sched_getaffinity(0)), int(fit)))


def _run(command: Iterable[str]) -> str | None:
    """Run nvcc; returns its output from the first error on if it refuses the code, else ``None``."""
    try:
        done = subprocess.run(list(command), capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise WorkError(
            "a kernel was to be compiled", found=f"nvcc, still running after {TIMEOUT_S:g} s",
            expected="a minute or so for each kernel", run="the same command with less load on the host",
        ) from error  # fmt: skip
    output = done.stdout + done.stderr
    if done.returncode < 0 or re.search(r"died due to signal 9|No space left on device|out of memory", output):
        raise WorkError(
            "a kernel was to be compiled", found=f"nvcc ended with {done.returncode}: {output[-KEPT_CHARACTERS:]}",
            expected="enough memory and disk for nvcc (about 4 GB per kernel)",
            run="the same command with less load on the host",
        )  # fmt: skip
    if not done.returncode:
        return None
    first = re.search(r"^.*\berror\b", output, re.MULTILINE)  # most of the later errors follow from it
    return output[first.start() :][:KEPT_CHARACTERS] if first else output[-KEPT_CHARACTERS:]


def _refusal(folder: Path, key: str, nvcc: str) -> Path:
    return folder / f"{key}.{nvcc}.refused"


def _appear(path: Path, text: str, scratch: Path) -> None:
    temporary = scratch / path.name
    temporary.write_text(text)
    os.replace(temporary, path)
