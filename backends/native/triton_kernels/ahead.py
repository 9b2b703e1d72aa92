"""Triton kernels compiled ahead for a device that need not be there, kept by content.

A kernel is two files: a cubin, and a JSON record of how it is launched. Its key is the digest of everything that its
code follows from: its source, types and constants, Triton's version, the target. What was compiled once under a key is
never compiled again, and a refusal of the compiler is kept as well. Launching needs these two files alone.
"""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from autotune.backends.native.kind import place
from autotune.backends.native.triton_kernels.plan import TritonSource
from autotune.errors import WorkError
from autotune.records.canonical import canonical, digest
from autotune.records.device import Device
from autotune.runtime.host_memory import HostMemory
from autotune.scratch import ScratchFolder

SCHEMA = 2
BYTES_A_KERNEL = 0.5e9
OLDEST_TRITON = (3, 4)
TIMEOUT_S = 300.0
TAIL_CHARACTERS = 2000
PROGRAM = Path(__file__).with_name("compile_one.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class CubinRecord:
    """How a cubin is launched.

    ``target`` is its architecture such as ``sm_90a``; ``parameters`` are names and Triton types in their order, after
    which the kernel takes ``hidden_pointers`` addresses that may be null. An ``early`` one waits by itself for the
    launch before it in the stream, so that it may begin while that one still works.
    """

    function: str
    target: str
    threads: int
    shared_bytes: int
    parameters: tuple[tuple[str, str], ...]
    hidden_pointers: int
    early: bool
    triton: str
    cubin_sha256: str

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "CubinRecord":
        """Read what ``asdict`` gave, also after a trip through JSON."""
        return cls(**{**data, "parameters": tuple((name, kind) for name, kind in data["parameters"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledKernel:
    """A kernel that is compiled: the files ``<key>.cubin`` and ``<key>.json`` of a folder.

    ``compile_s`` is the time that it took just now, 0 where it was there.
    """

    key: str
    folder: Path
    compile_s: float = field(default=0.0, compare=False)

    def read(self) -> tuple[CubinRecord, bytes]:
        """Read both files; raises WorkError where they are missing or damaged."""
        try:
            data = json.loads((self.folder / f"{self.key}.json").read_text())
            cubin = (self.folder / f"{self.key}.cubin").read_bytes()
            if data.pop("schema") != SCHEMA:
                raise ValueError(f"its record is not of schema {SCHEMA}")
            record = CubinRecord.from_dict(data)
            if hashlib.sha256(cubin).hexdigest() != record.cubin_sha256:
                raise ValueError("the cubin is not the one that the record describes")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise WorkError(
                f"reading kernel {self.key} in {self.folder}", found=f"{type(error).__name__}: {error}",
                expected=f"{self.key}.cubin and {self.key}.json as they were compiled",
                run="the same after deleting both: they are compiled again",
            ) from error  # fmt: skip
        return record, cubin

    def copy_to(self, folder: Path) -> "CompiledKernel":
        """Copy both files into an artifact."""
        for suffix in ("cubin", "json"):
            place(self.folder / f"{self.key}.{suffix}", folder / f"{self.key}.{suffix}")
        return CompiledKernel(key=self.key, folder=folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A kernel that the compiler refuses, and the end of what it said; ``compile_s`` as of a compiled one."""

    key: str
    detail: str
    compile_s: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonCompiler:
    """The Triton of this environment, for one compute capability such as (9, 0)."""

    version: str
    capability: tuple[int, int]

    @classmethod
    def find(cls, device: Device) -> "TritonCompiler":
        """Find Triton without importing it; raises WorkError where it is missing or too old, or there is no GPU."""
        asked = f"compiling a Triton kernel for {device.name}"
        if device.capability is None:
            raise WorkError(asked, found="no GPU", expected="a device with a compute capability")
        floor = ".".join(map(str, OLDEST_TRITON))
        install = f"pip install 'triton>={floor}'"
        try:
            version = metadata.version("triton")
        except metadata.PackageNotFoundError as error:
            raise WorkError(asked, found="no package triton", expected=f"triton >= {floor}", run=install) from error
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TRITON:
            raise WorkError(asked, found=f"triton {version}", expected=f"triton >= {floor}", run=install)
        return cls(version=version, capability=device.capability)

    def key(self, source: TritonSource) -> str:
        """Give the digest of all that a kernel's code follows from."""
        return digest(
            {"schema": SCHEMA, "source": source.digest, "triton": self.version, "capability": list(self.capability)}
        )


class TritonCache:
    """A folder of compiled kernels; several processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str) -> CompiledKernel | Refused | None:
        """Give what a key came to, or ``None`` where it was not compiled yet."""
        with contextlib.suppress(FileNotFoundError):
            return Refused(key=key, detail=(self.folder / f"{key}.refused").read_text())
        there = all((self.folder / f"{key}.{suffix}").is_file() for suffix in ("json", "cubin"))
        return CompiledKernel(key=key, folder=self.folder) if there else None

    def compile(
        self, compiler: TritonCompiler, sources: Sequence[TritonSource], *, at_once: int | None = None
    ) -> list[CompiledKernel | Refused]:
        """Compile what is not there yet, each in a process of its own, and give what each came to, in their order.

        Raises WorkError where nothing can be said of a kernel: the compiler was killed, or ran out of time or disk.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        keys = [compiler.key(source) for source in sources]
        missing = {key: source for key, source in zip(keys, sources, strict=True) if self.get(key) is None}
        with ThreadPoolExecutor(at_once or kernels_at_once()) as pool:
            times = pool.map(lambda key: self._compile(compiler, missing[key], key), missing)
            compile_s = dict(zip(missing, times, strict=True))
        found = {key: self.get(key) for key in keys}
        lost = next((key for key, kernel in found.items() if kernel is None), None)
        if lost is not None:
            raise WorkError(
                f"kernel {lost} was compiled into {self.folder}", found="nothing under its key",
                expected="a folder that nobody empties meanwhile", run="the same command",
            )  # fmt: skip
        return [
            replace(kernel, compile_s=compile_s.get(key, 0.0)) for key in keys if (kernel := found[key]) is not None
        ]

    def _compile(self, compiler: TritonCompiler, source: TritonSource, key: str) -> float:
        """Compile one kernel, and tell how many seconds it took."""
        begun = time.monotonic()
        with ScratchFolder("unit", self.folder) as unit:
            order = unit / "order.json"
            major, minor = compiler.capability
            order.write_text(canonical({**asdict(source), "capability": 10 * major + minor}))
            crash = _run([sys.executable, str(PROGRAM), str(order), str(unit)], unit)
            if crash is not None:
                (unit / "refused").write_text(crash)
            if (unit / "refused").exists():
                said = (unit / "refused").read_text()[-TAIL_CHARACTERS:]
                _appear(self.folder / f"{key}.refused", said.encode(), unit)
                return time.monotonic() - begun
            record = {**json.loads((unit / "kernel.json").read_text()), "schema": SCHEMA}
            # The record last: where it is, the cubin is as well.
            _appear(self.folder / f"{key}.cubin", (unit / "kernel.cubin").read_bytes(), unit)
            _appear(self.folder / f"{key}.json", canonical(record).encode(), unit)
        return time.monotonic() - begun


def kernels_at_once() -> int:
    """How many kernels compile side by side: as many as there are cores, and memory for them."""
    fit = HostMemory.read().available_bytes // BYTES_A_KERNEL
    return max(1, min(len(os.sched_getaffinity(0)), int(fit)))


def _run(command: list[str], scratch: Path) -> str | None:
    """Run the compiler; gives what it said where it crashed on the kernel."""
    # Triton's switches change the code that it makes or keep it from making any; of them only paths to tools are kept.
    kept = {name: v for name, v in os.environ.items() if not name.startswith("TRITON_") or name.endswith("_PATH")}
    variables = {**kept, "TRITON_CACHE_DIR": str(scratch / "cache")}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False, env=variables
        )
    except subprocess.TimeoutExpired as error:
        raise WorkError(
            "a Triton kernel was to be compiled", found=f"Triton, still at work after {TIMEOUT_S:g} s",
            expected="a few seconds for each kernel", run="the same with less beside it",
        ) from error  # fmt: skip
    said = (done.stdout + done.stderr)[-TAIL_CHARACTERS:]
    if done.returncode in (-6, -11):  # SIGABRT, SIGSEGV: an assertion of LLVM, or what lacks one
        return f"the compiler crashed with signal {-done.returncode}: {said}"
    if done.returncode != 0:
        raise WorkError(
            "a Triton kernel was to be compiled", found=f"the compiler ended with {done.returncode}: {said}",
            expected="a working Triton, memory and disk enough (about 0.5 GB a kernel)",
            run="python -c 'import triton'",
        )  # fmt: skip
    return None


def _appear(path: Path, content: bytes, scratch: Path) -> None:
    temporary = scratch / path.name
    temporary.write_bytes(content)
    os.replace(temporary, path)
