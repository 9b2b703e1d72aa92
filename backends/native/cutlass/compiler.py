"""Kernels compiled by nvcc into libraries of plain C functions: several to a unit, side by side, kept by content.

A kernel's key is the digest of its source, our headers, the flags and the architecture; kernels of different releases
of CUTLASS go into different folders. What was compiled once under a key is never compiled again, by whichever nvcc; a
refusal is kept for the release of nvcc that refused. Loading a library needs neither nvcc nor CUTLASS's headers, nor
does its key.
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
from autotune.scratch import ScratchFolder

KERNELS_A_UNIT = 4
"""Reading CUTLASS's headers takes 14 s, so that four kernels in one unit take 63 s, and in four units 4 times 40 s."""

BYTES_A_UNIT, BYTES_A_KERNEL = 2.8e9, 0.63e9
"""Memory of nvcc at its peak, measured on CUTLASS kernels for sm_90a: 3.4 GB for one kernel, 7.8 GB for eight."""

TIMEOUT_S = 900.0
KEPT_CHARACTERS = 2000
FLAGS = ("-O3", "-std=c++17", "--expt-relaxed-constexpr", "-DNDEBUG", "-Xcompiler", "-fPIC", "-shared")
"""Without NDEBUG ptxas serialises the tensor cores' instructions of sm_90a."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSource:
    """The source of one kernel, in which ``{name}`` stands for the name that its functions begin with.

    ``header`` is the header that it includes, by its path, which may include what lies beside it; kernels of a unit
    have the same.
    """

    header: Path
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledKernel:
    """A kernel in a shared library: its functions are ``<name>_run``, ``<name>_workspace_bytes``, ``<name>_made``.

    ``compile_s`` is its share of the time of the units that it was compiled in, 0 where it was there before.
    """

    key: str
    library: Path
    compile_s: float = field(default=0.0, compare=False)

    @property
    def name(self) -> str:
        """What its functions begin with."""
        return name_of(self.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A kernel that the compiler refuses, and what it said from its first error on."""

    key: str
    detail: str
    compile_s: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiler:
    """An nvcc with the headers that it is given, for one architecture such as ``90a``."""

    nvcc: Path
    version: str
    includes: tuple[Path, ...]
    headers_version: str
    architecture: str

    @classmethod
    def bare(cls, architecture: str) -> "Compiler":
        """Find nvcc, for kernels that need no headers but its own; raises WorkError where it is missing."""
        asked = f"compiling a kernel for sm_{architecture}"
        found = environment.nvcc()
        if found is None:
            raise WorkError(
                asked, found="no nvcc on PATH, and no variable NVCC",
                expected="the CUDA toolkit's compiler; kernels that are compiled already need none",
                run="install the CUDA toolkit, or name its compiler: NVCC=/usr/local/cuda/bin/nvcc",
            )  # fmt: skip
        try:
            said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
        except OSError as error:
            said = str(error)
        version = re.search(r"V(\d+\.\d+\.\d+)", said)
        if version is None:
            raise WorkError(
                asked, found=f"{found} --version, which said {said[-200:]!r}", expected="NVIDIA's nvcc",
                run="NVCC=/path/to/nvcc and the same command",
            )  # fmt: skip
        return cls(nvcc=Path(found), version=version[1], includes=(), headers_version="none", architecture=architecture)

    @classmethod
    def find(cls, architecture: str) -> "Compiler":
        """Find nvcc and CUTLASS's headers; raises WorkError where one of them is missing."""
        bare = cls.bare(architecture)
        spec = importlib.util.find_spec("cutlass_library")
        if spec is None or spec.origin is None:
            raise WorkError(
                f"compiling a kernel for sm_{architecture}", found="no CUTLASS headers",
                expected="the package nvidia-cutlass", run="pip install 'autotune-inference[native]'",
            )  # fmt: skip
        source = Path(spec.origin).parent / "source"
        includes = source / "include", source / "tools" / "util" / "include"
        return replace(bare, includes=includes, headers_version=metadata.version("nvidia-cutlass"))

    @property
    def flags(self) -> tuple[str, ...]:
        """What nvcc is given besides files and folders."""
        return flags(self.architecture)


def flags(architecture: str) -> tuple[str, ...]:
    """What nvcc is given for an architecture besides files and folders."""
    return (*FLAGS, f"-gencode=arch=compute_{architecture},code=sm_{architecture}")


def key_of(kernel: KernelSource, architecture: str) -> str:
    """Give the digest of all of ours that a kernel's code follows from."""
    parts = (kernel.code, kernel.header.name, _headers(kernel.header.parent), *flags(architecture))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@cache
def _headers(folder: Path) -> str:
    """Names and texts of our headers in a folder: what is installed stays as it is while a process runs."""
    beside = sorted(path for path in folder.iterdir() if path.suffix in (".h", ".cuh"))
    return "\0".join(f"{path.name}\0{path.read_text()}" for path in beside)


class KernelCache:
    """A folder of compiled kernels; several processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str, *, nvcc: str = "") -> CompiledKernel | Refused | None:
        """Give the kernel of a key, else what this release of nvcc had against it, ``None`` where it was not asked."""
        library = self.folder / f"{key}.so"
        if library.is_file():
            return CompiledKernel(key=key, library=library)
        with contextlib.suppress(FileNotFoundError):
            return Refused(key=key, detail=_refusal(self.folder, key, nvcc).read_text())
        return None

    def compile(
        self, compiler: Compiler, kernels: Sequence[KernelSource], *, at_once: int | None = None,
        a_unit: int = KERNELS_A_UNIT,
    ) -> list[CompiledKernel | Refused]:  # fmt: skip
        """Compile what is not there yet and give what each kernel came to, in their order, ``a_unit`` in one at most.

        A unit that fails is compiled again one kernel at a time, so that each refusal has its kernel. Raises WorkError
        where nvcc itself failed: killed, or out of time.
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
        together = min(a_unit, -(-len(missing) // (at_once or units_at_once(1))))  # no core goes without
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

    def _kept(self, key: str, compiler: Compiler) -> CompiledKernel | Refused:
        found = self.get(key, nvcc=compiler.version)
        if found is None:
            raise WorkError(
                f"kernel {key} was compiled into {self.folder}", found="nothing under its key",
                expected="a folder that nobody empties meanwhile", run="the same command",
            )  # fmt: skip
        return found

    def _unit(
        self, compiler: Compiler, kernels: dict[str, KernelSource], keys: tuple[str, ...], spent: dict[str, float], *,
        alone: bool = False,
    ) -> tuple[str, ...]:  # fmt: skip
        """Compile some kernels of one header into one library; gives those that have to be tried alone."""
        start = time.perf_counter()
        header = kernels[keys[0]].header
        code = [kernels[key].code.replace("{name}", name_of(key)) for key in keys]
        with ScratchFolder("unit", self.folder) as scratch:
            unit, library = scratch / "unit.cu", scratch / "unit.so"
            unit.write_text("\n".join([f'#include "{header.name}"', *code]) + "\n")
            includes = [f"-I{folder}" for folder in (header.parent, *compiler.includes)]
            said = _run([str(compiler.nvcc), *compiler.flags, *includes, str(unit), "-o", str(library)])
            for key in keys:
                spent[key] += (time.perf_counter() - start) / len(keys)
            if said is not None:
                if not alone and len(keys) > 1:
                    return keys
                for key in keys:
                    _appear(_refusal(self.folder, key, compiler.version), said, scratch)
                return ()
            for key in keys:  # a library of several kernels is one file under several names
                own = scratch / key
                os.link(library, own)
                os.replace(own, self.folder / f"{key}.so")
        return ()


def name_of(key: str) -> str:
    """What a kernel's functions begin with: distinct in a unit, and no longer than a name should be."""
    return f"kernel_{key[:16]}"


def units_at_once(kernels: int) -> int:
    """How many units of so many kernels compile side by side: as many as there are cores, and memory for them."""
    fit = HostMemory.read().available_bytes // (BYTES_A_UNIT + kernels * BYTES_A_KERNEL)
    return max(1, min(len(os.sched_getaffinity(0)), int(fit)))


def _run(command: Iterable[str]) -> str | None:
    """Run nvcc; gives what it said from its first error on where it refuses the code."""
    try:
        done = subprocess.run(list(command), capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise WorkError(
            "a kernel was to be compiled", found=f"nvcc, still at work after {TIMEOUT_S:g} s",
            expected="a minute or so for each kernel", run="the same with less beside it",
        ) from error  # fmt: skip
    said = done.stdout + done.stderr
    if done.returncode < 0 or re.search(r"died due to signal 9|No space left on device|out of memory", said):
        raise WorkError(
            "a kernel was to be compiled", found=f"nvcc ended with {done.returncode}: {said[-KEPT_CHARACTERS:]}",
            expected="memory and disk enough for nvcc (about 4 GB a kernel)", run="the same with less beside it",
        )  # fmt: skip
    if not done.returncode:
        return None
    first = re.search(r"^.*\berror\b", said, re.MULTILINE)  # what comes after it mostly follows from it
    return said[first.start() :][:KEPT_CHARACTERS] if first else said[-KEPT_CHARACTERS:]


def _refusal(folder: Path, key: str, nvcc: str) -> Path:
    return folder / f"{key}.{nvcc}.refused"


def _appear(path: Path, text: str, scratch: Path) -> None:
    temporary = scratch / path.name
    temporary.write_text(text)
    os.replace(temporary, path)
