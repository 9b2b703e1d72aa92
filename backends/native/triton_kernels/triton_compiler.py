"""Triton kernels compiled for a device that need not be present, cached by content.

A kernel is two files: a cubin, and a JSON record of its launch. Its key is the digest of everything that decides its
code: source, types and constants, Triton's version, the target. A kernel that was compiled under a key is never
compiled again, and a refusal of the compiler is cached as well. A launch needs these two files only.
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

from autotune.backends.native.kernel_kind import copy_atomically
from autotune.backends.native.triton_kernels.launch_plan import TritonSource
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
    """The data that a launch of a cubin needs.

    ``target`` is its architecture such as ``sm_90a``; ``parameters`` are names and Triton types in their order, after
    which the kernel takes ``hidden_pointers`` addresses that may be null. With ``programmatic_launch`` (``early`` in
    the file) the kernel itself waits for the launch before it in the stream, so it may begin while that one still runs.
    """

    function: str
    target: str
    threads: int
    shared_bytes: int
    parameters: tuple[tuple[str, str], ...]
    hidden_pointers: int
    programmatic_launch: bool
    triton: str
    cubin_sha256: str

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "CubinRecord":
        """Read the record that the compiler's process wrote as JSON."""
        fields = {name: value for name, value in data.items() if name != "early"}
        parameters = tuple((name, kind) for name, kind in data["parameters"])
        return cls(**{**fields, "parameters": parameters, "programmatic_launch": data["early"]})


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledCubin:
    """A kernel that is compiled: the files ``<key>.cubin`` and ``<key>.json`` of a folder.

    ``compile_s`` is its compile time in this call, 0 if it was in the cache.
    """

    key: str
    folder: Path
    compile_s: float = field(default=0.0, compare=False)

    def read(self) -> tuple[CubinRecord, bytes]:
        """Read both files; raises WorkError if they are missing or damaged."""
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
                run="the same command after deleting both: they are compiled again",
            ) from error  # fmt: skip
        return record, cubin

    def copy_to(self, folder: Path) -> "CompiledCubin":
        """Copy both files into an artifact."""
        for suffix in ("cubin", "json"):
            copy_atomically(self.folder / f"{self.key}.{suffix}", folder / f"{self.key}.{suffix}")
        return CompiledCubin(key=self.key, folder=folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonRefusal:
    """A kernel that the compiler refuses, with the end of its output; ``compile_s`` as in :class:`CompiledCubin`."""

    key: str
    detail: str
    compile_s: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonCompiler:
    """The installed Triton, for one compute capability such as (9, 0)."""

    version: str
    capability: tuple[int, int]

    @classmethod
    def find(cls, device: Device) -> "TritonCompiler":
        """Find Triton without importing it; raises WorkError if it is missing or too old, or there is no GPU."""
        action = f"compiling a Triton kernel for {device.name}"
        if device.capability is None:
            raise WorkError(action, found="no GPU", expected="a device with a compute capability")
        floor = ".".join(map(str, OLDEST_TRITON))
        install = f"pip install 'triton>={floor}'"
        try:
            version = metadata.version("triton")
        except metadata.PackageNotFoundError as error:
            raise WorkError(action, found="no package triton", expected=f"triton >= {floor}", run=install) from error
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TRITON:
            raise WorkError(action, found=f"triton {version}", expected=f"triton >= {floor}", run=install)
        return cls(version=version, capability=device.capability)

    def key(self, source: TritonSource) -> str:
        """Return the digest of all that decides a kernel's code."""
        return digest(
            {"schema": SCHEMA, "source": source.digest, "triton": self.version, "capability": list(self.capability)}
        )


class TritonCache:
    """A folder of compiled kernels; several processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str) -> CompiledCubin | TritonRefusal | None:
        """Return the kernel or the refusal of a key, or ``None`` if it was not compiled yet."""
        with contextlib.suppress(FileNotFoundError):
            return TritonRefusal(key=key, detail=(self.folder / f"{key}.refused").read_text())
        there = all((self.folder / f"{key}.{suffix}").is_file() for suffix in ("json", "cubin"))
        return CompiledCubin(key=key, folder=self.folder) if there else None

    def compile(
        self, compiler: TritonCompiler, sources: Sequence[TritonSource], *, at_once: int | None = None
    ) -> list[CompiledCubin | TritonRefusal]:
        """Compile the kernels that are not in the cache, each in a process of its own; returns all, in their order.

        Raises WorkError if a kernel has no result: the compiler was killed, or ran out of time or disk.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        keys = [compiler.key(source) for source in sources]
        missing = {key: source for key, source in zip(keys, sources, strict=True) if self.get(key) is None}
        with ThreadPoolExecutor(at_once or kernels_at_once()) as pool:
            times = pool.map(lambda key: self._compile(compiler, missing[key], key), missing)
            compile_s = dict(zip(missing, times, strict=True))
        results = {key: self.get(key) for key in keys}
        missing_key = next((key for key, kernel in results.items() if kernel is None), None)
        if missing_key is not None:
            raise WorkError(
                f"kernel {missing_key} was compiled into {self.folder}", found="nothing under its key",
                expected="a folder that no other program empties meanwhile", run="the same command",
            )  # fmt: skip
        return [
            replace(kernel, compile_s=compile_s.get(key, 0.0)) for key in keys if (kernel := results[key]) is not None
        ]

    def _compile(self, compiler: TritonCompiler, source: TritonSource, key: str) -> float:
        """Compile one kernel; returns the seconds it took."""
        start = time.monotonic()
        with ScratchFolder("unit", self.folder) as unit:
            request = unit / "order.json"
            major, minor = compiler.capability
            request.write_text(canonical({**asdict(source), "capability": 10 * major + minor}))
            crash_output = _run([sys.executable, str(PROGRAM), str(request), str(unit)], unit)
            if crash_output is not None:
                (unit / "refused").write_text(crash_output)
            if (unit / "refused").exists():
                output = (unit / "refused").read_text()[-TAIL_CHARACTERS:]
                _appear(self.folder / f"{key}.refused", output.encode(), unit)
                return time.monotonic() - start
            record = {**json.loads((unit / "kernel.json").read_text()), "schema": SCHEMA}
            # The record last: if it is, the cubin is as well.
            _appear(self.folder / f"{key}.cubin", (unit / "kernel.cubin").read_bytes(), unit)
            _appear(self.folder / f"{key}.json", canonical(record).encode(), unit)
        return time.monotonic() - start


def kernels_at_once() -> int:
    """Return the number of kernels that compile in parallel: limited by cores and by memory."""
    fit = HostMemory.read().available_bytes // BYTES_A_KERNEL
    return max(1, min(len(os.sched_getaffinity(0)), int(fit)))


def _run(command: list[str], scratch: Path) -> str | None:
    """Run the compiler; returns its output if it crashed on the kernel, else ``None``."""
    # Triton's environment variables change or prevent its code; only those with paths to tools are passed on.
    kept = {name: v for name, v in os.environ.items() if not name.startswith("TRITON_") or name.endswith("_PATH")}
    variables = {**kept, "TRITON_CACHE_DIR": str(scratch / "cache")}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False, env=variables
        )
    except subprocess.TimeoutExpired as error:
        raise WorkError(
            "a Triton kernel was to be compiled", found=f"Triton, still running after {TIMEOUT_S:g} s",
            expected="a few seconds for each kernel", run="the same command with less load on the host",
        ) from error  # fmt: skip
    output = (done.stdout + done.stderr)[-TAIL_CHARACTERS:]
    if done.returncode in (-6, -11):  # SIGABRT, SIGSEGV: an assertion of LLVM, or a missing one
        return f"the compiler crashed with signal {-done.returncode}: {output}"
    if done.returncode != 0:
        raise WorkError(
            "a Triton kernel was to be compiled", found=f"the compiler ended with {done.returncode}: {output}",
            expected="a working Triton, enough memory and disk (about 0.5 GB per kernel)",
            run="python -c 'import triton'",
        )  # fmt: skip
    return None


def _appear(path: Path, content: bytes, scratch: Path) -> None:
    temporary = scratch / path.name
    temporary.write_bytes(content)
    os.replace(temporary, path)
