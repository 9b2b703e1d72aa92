"""Kernels of ours that are compiled, in a folder: a cubin and a JSON record each, kept by content.

Their names have the key of the build and that of the source. A search takes kernels of the same source alone; an
artifact or a pack may be older than this release, so its kernels are loaded if their launch is the same (``abi``).
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from autotune.backends.native.cuda_kernels.cubin_compiler import Cubin, CubinCompiler
from autotune.backends.native.cuda_kernels.kernel_source import KernelSource
from autotune.backends.native.cuda_kernels.launch_arguments import ABI
from autotune.backends.native.kernel_kind import copy_atomically
from autotune.errors import WorkError
from autotune.records.canonical import canonical
from autotune.records.configuration import Configuration
from autotune.runtime.host_memory import HostMemory
from autotune.scratch import ScratchFolder
from autotune.search_spaces.split_gemm import SplitBuild

SCHEMA = 1
BYTES_A_KERNEL = 0.4e9

MOST_SPILLED_BYTES = 64
"""A kernel that spills more of a thread is refused; one of ``cluster_gemm``, 128 by 64 by two warps, spills 320."""

SUFFIXES = ("cubin", "json")
"""Of a kernel's files; the record appears last, so a kernel with a record is whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRecord:
    """The data that a launch of a cubin needs, with its resources and its origin.

    ``abi`` is the number of the structures that it takes; ``cuda`` the release that compiled it.
    """

    abi: int
    build: SplitBuild
    function: str
    threads: int
    shared_bytes: int
    registers: int
    spilled_bytes: int
    compiler: str
    cuda: tuple[int, int]
    cubin_sha256: str

    def as_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        return {**asdict(self), "build": _build_as_dict(self.build), "cuda": list(self.cuda), "schema": SCHEMA}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "KernelRecord":
        """Read the output of :meth:`as_dict`; raises ValueError, KeyError or TypeError for anything else."""
        values = dict(data)
        if values.pop("schema") != SCHEMA:
            raise ValueError(f"its record is not of schema {SCHEMA}")
        build = dict(values["build"])
        values["build"] = SplitBuild(**{**build, "tile": Configuration.from_dict(build["tile"])})
        values["cuda"] = tuple(values["cuda"])
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledKernel:
    """A kernel in a folder; ``compile_s`` is its compile time in this call, 0 if it was there."""

    folder: Path
    name: str
    compile_s: float = field(default=0.0, compare=False)

    @property
    def source_key(self) -> str:
        """The key of its source."""
        return self.name.split(".")[1]

    def record(self) -> KernelRecord:
        """Read the record alone; raises WorkError if it is missing or damaged."""
        with self._reading():
            return KernelRecord.from_dict(json.loads((self.folder / f"{self.name}.json").read_text()))

    def read(self) -> tuple[KernelRecord, bytes]:
        """Read both files; raises WorkError if they are missing or damaged, or of another ABI."""
        record = self.record()
        with self._reading():
            code = (self.folder / f"{self.name}.cubin").read_bytes()
            if hashlib.sha256(code).hexdigest() != record.cubin_sha256:
                raise ValueError("the cubin is not the one that its record describes")
        if record.abi != ABI:
            raise WorkError(
                f"reading kernel {self.name} in {self.folder}", found=f"a kernel of ABI {record.abi}",
                expected=f"ABI {ABI}, which this release launches", run="the build of the artifact or pack again",
            )  # fmt: skip
        return record, code

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise WorkError(
                f"reading kernel {self.name} in {self.folder}", found=f"{type(error).__name__}: {error}",
                expected=f"{self.name}.cubin and {self.name}.json as they were compiled",
                run="the same command after deleting both: they are compiled again",
            ) from error  # fmt: skip

    def copy_to(self, folder: Path) -> "CompiledKernel":
        """Copy both files."""
        folder.mkdir(parents=True, exist_ok=True)
        for suffix in SUFFIXES:
            copy_atomically(self.folder / f"{self.name}.{suffix}", folder / f"{self.name}.{suffix}")
        return CompiledKernel(folder=folder, name=self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class CubinRefusal:
    """A kernel that the compiler refuses, with its output from the first error on."""

    detail: str
    compile_s: float = field(default=0.0, compare=False)


class CubinCache:
    """A folder of compiled kernels; several threads and processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, source: KernelSource) -> CompiledKernel | None:
        """Return the kernel of exactly this source."""
        name = f"{source.build.key}.{source.key}"
        return CompiledKernel(folder=self.folder, name=name) if self._record(name).is_file() else None

    def of_build(self, build: SplitBuild) -> Iterator[CompiledKernel]:
        """List the kernels of a build, of any release of this package."""
        for path in sorted(self.folder.glob(f"{build.key}.*.json")):
            yield CompiledKernel(folder=self.folder, name=path.name.removesuffix(".json"))

    def builds(self) -> Mapping[str, SplitBuild]:
        """Return the builds of all kernels by their names; damaged records are left out."""
        try:
            with os.scandir(self.folder) as entries:
                names = [entry.name.removesuffix(".json") for entry in entries if entry.name.endswith(".json")]
        except FileNotFoundError:
            return {}
        builds = {name: _build_in(self.folder, name) for name in sorted(names)}
        return {name: build for name, build in builds.items() if build is not None}

    def all(self) -> Iterator[CompiledKernel]:
        """List all kernels, also those of other releases."""
        for path in sorted(self.folder.glob("*.json")):
            yield CompiledKernel(folder=self.folder, name=path.name.removesuffix(".json"))

    def compile(
        self, compiler: CubinCompiler, sources: Sequence[KernelSource], *, at_once: int | None = None,
        tell: Callable[[int, int], None] | None = None,
    ) -> list[CompiledKernel | CubinRefusal]:  # fmt: skip
        """Compile the kernels that are not in the cache; returns all, in their order. Refusals are kept as well.

        ``tell`` gets the number of kernels that are compiled, and of all.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        distinct = list(dict.fromkeys(sources))
        with (
            ScratchFolder("kernels", self.folder) as scratch,
            ThreadPoolExecutor(at_once or kernels_at_once(), thread_name_prefix="autotune-cubin") as pool,
        ):
            results = pool.map(lambda source: self._compile_one(compiler, source, scratch), distinct)
            compiled = {}
            for source, result in zip(distinct, results, strict=True):
                compiled[source] = result
                if tell is not None:
                    tell(len(compiled), len(distinct))
        return [compiled[source] for source in sources]

    def _compile_one(
        self, compiler: CubinCompiler, source: KernelSource, scratch: Path
    ) -> CompiledKernel | CubinRefusal:
        kernel = self.get(source)
        if kernel is not None:
            return kernel
        refusal = self.folder / f"{source.key}.{compiler.name.replace(' ', '-')}.refused"
        if refusal.is_file():
            return CubinRefusal(detail=refusal.read_text())
        start = time.perf_counter()
        result = compiler.compile(source, scratch)
        compile_s = time.perf_counter() - start
        if isinstance(result, Cubin) and result.spilled_bytes > MOST_SPILLED_BYTES:
            result = f"it spills {result.spilled_bytes} bytes of a thread; the limit is {MOST_SPILLED_BYTES}"
        if isinstance(result, str):
            _appear(refusal, result.encode(), scratch)
            return CubinRefusal(detail=result, compile_s=compile_s)
        record = KernelRecord(
            abi=ABI, build=source.build, function=source.function, threads=source.threads,
            shared_bytes=source.shared_bytes, registers=result.registers, spilled_bytes=result.spilled_bytes,
            compiler=compiler.name, cuda=compiler.cuda, cubin_sha256=hashlib.sha256(result.code).hexdigest(),
        )  # fmt: skip
        name = f"{source.build.key}.{source.key}"
        _appear(self.folder / f"{name}.cubin", result.code, scratch)
        _appear(self._record(name), canonical(record.as_dict()).encode(), scratch)
        return CompiledKernel(folder=self.folder, name=name, compile_s=compile_s)

    def _record(self, name: str) -> Path:
        return self.folder / f"{name}.json"


@cache
def _build_in(folder: Path, name: str) -> SplitBuild | None:
    """Read the build of a record; the name has its digest, so it stays the same."""
    try:
        return KernelRecord.from_dict(json.loads((folder / f"{name}.json").read_text())).build
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def kernels_at_once() -> int:
    """Return the number of kernels that compile in parallel: limited by cores and by memory."""
    fit = HostMemory.read().available_bytes // BYTES_A_KERNEL
    return max(1, min(len(os.sched_getaffinity(0)), int(fit)))


def _build_as_dict(build: SplitBuild) -> dict[str, object]:
    return {**asdict(build), "tile": build.tile.as_dict()}


def _appear(path: Path, content: bytes, scratch: Path) -> None:
    temporary = scratch / path.name
    temporary.write_bytes(content)
    os.replace(temporary, path)
