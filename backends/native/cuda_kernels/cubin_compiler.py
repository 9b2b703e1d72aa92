"""Compilers that turn a kernel's source into a cubin: NVRTC in this process, or nvcc."""

import ctypes
import importlib.util
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Protocol

from autotune import environment
from autotune.backends.native.cuda_kernels.kernel_source import HERE, STANDARD, KernelSource, headers_of
from autotune.errors import WorkError
from autotune.runtime.installed import cuda_of_torch
from autotune.scratch import ScratchFolder

KEPT_CHARACTERS = 2000
NVCC_TIMEOUT_S = 300.0
NAMES = ("libnvrtc.so.13", "libnvrtc.so.12")
"""The libraries of the releases of CUDA whose kernels torch's builds can run beside, the latest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cubin:
    """The code of a kernel, and the resources of a thread: registers, and bytes that were spilled to memory."""

    code: bytes = field(repr=False)
    registers: int
    spilled_bytes: int


class CubinCompiler(Protocol):
    """A compiler; ``cuda`` is its release, which the driver must support. Safe to use from several threads."""

    @property
    def name(self) -> str:
        """Its name with its release."""
        ...

    @property
    def cuda(self) -> tuple[int, int]:
        """The release of CUDA, such as (13, 0)."""
        ...

    def compile(self, source: KernelSource, scratch: Path) -> Cubin | str:
        """Return the kernel, or the compiler's refusal; raises WorkError if the compiler itself fails."""
        ...


class Nvrtc:
    """NVRTC, the compiler that comes with torch's builds for CUDA; it reads our headers from memory."""

    def __init__(self, library: str) -> None:
        """Load the library; raises OSError if it does not load."""
        path = Path(library)
        for builtins in sorted(path.parent.glob("libnvrtc-builtins.so.*")) if path.is_absolute() else ():
            ctypes.CDLL(str(builtins))  # NVRTC looks for it by its name alone
        self._library = ctypes.CDLL(library)
        for function in ("nvrtcGetErrorString",):
            getattr(self._library, function).restype = ctypes.c_char_p
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.cuda = (major.value, minor.value)

    @property
    def name(self) -> str:
        """Its name with its release."""
        return "nvrtc {}.{}".format(*self.cuda)

    def compile(self, source: KernelSource, scratch: Path) -> Cubin | str:
        """Compile in this thread; others run meanwhile."""
        headers = headers_of(source.header)
        program = ctypes.c_void_p()
        self._call(
            "nvrtcCreateProgram", ctypes.byref(program), source.text.encode(), b"kernel.cu", len(headers),
            _strings(list(headers.values())), _strings(list(headers)),
        )  # fmt: skip
        try:
            # Without -default-device it takes a generic lambda of a kernel for a function of the host.
            options = [
                f"-arch={source.build.architecture}",
                f"-std={STANDARD}",
                "-default-device",
                "--ptxas-options=-v",
            ]
            refused = self._library.nvrtcCompileProgram(program, len(options), _strings(options))
            log = self._text(program, "nvrtcGetProgramLog")
            if refused:
                return _from_first_error(log)
            return Cubin(code=self._bytes(program, "nvrtcGetCUBIN"), **_resources(log))
        finally:
            self._call("nvrtcDestroyProgram", ctypes.byref(program))

    def _text(self, program: ctypes.c_void_p, function: str) -> str:
        return self._bytes(program, function).rstrip(b"\0").decode(errors="replace")

    def _bytes(self, program: ctypes.c_void_p, function: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"{function}Size", program, ctypes.byref(size))
        content = ctypes.create_string_buffer(size.value)
        self._call(function, program, content)
        return content.raw

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise WorkError(
                "a kernel was to be compiled", found=f"{name} returned {self._library.nvrtcGetErrorString(status)!r}",
                expected="a working NVRTC", run="pip install --force-reinstall its package, or NVRTC=/path/to/another",
            )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class NvccCubins:
    """nvcc, for machines that have it without NVRTC; it takes two to four times as long."""

    nvcc: Path
    cuda: tuple[int, int]

    @classmethod
    def find(cls) -> "NvccCubins | None":
        """Return the nvcc of this machine if it works."""
        nvcc = environment.nvcc()
        if nvcc is None:
            return None
        try:
            output = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
        except OSError:
            return None
        release = re.search(r"release (\d+)\.(\d+)", output)
        return cls(nvcc=Path(nvcc), cuda=(int(release[1]), int(release[2]))) if release else None

    @property
    def name(self) -> str:
        """Its name with its release."""
        return "nvcc {}.{}".format(*self.cuda)

    def compile(self, source: KernelSource, scratch: Path) -> Cubin | str:
        """Compile in a process of its own."""
        with ScratchFolder("unit", scratch) as folder:
            unit, cubin = folder / "kernel.cu", folder / "kernel.cubin"
            unit.write_text(source.text)
            options = ["-cubin", f"-arch={source.build.architecture}", f"-std={STANDARD}", "-Xptxas", "-v", f"-I{HERE}"]
            try:
                done = subprocess.run(
                    [str(self.nvcc), *options, str(unit), "-o", str(cubin)],
                    capture_output=True, text=True, timeout=NVCC_TIMEOUT_S, check=False,
                )  # fmt: skip
            except subprocess.TimeoutExpired as error:
                raise WorkError(
                    "a kernel was to be compiled", found=f"nvcc, still running after {NVCC_TIMEOUT_S:g} s",
                    expected="a few seconds for each kernel", run="the same command with less load on the host",
                ) from error  # fmt: skip
            log = done.stdout + done.stderr
            if done.returncode < 0:
                raise WorkError(
                    "a kernel was to be compiled", found=f"nvcc ended with {done.returncode}: {log[-KEPT_CHARACTERS:]}",
                    expected="enough memory for nvcc", run="the same command with less load on the host",
                )  # fmt: skip
            if done.returncode:
                return _from_first_error(log)
            return Cubin(code=cubin.read_bytes(), **_resources(log))


@cache
def find_compiler() -> CubinCompiler | None:
    """Return NVRTC, of torch's release of CUDA if several are installed, else nvcc, else ``None``."""
    for library in _libraries():
        try:
            return Nvrtc(library)
        except (OSError, AttributeError):
            continue
    return NvccCubins.find()


def compiler() -> CubinCompiler:
    """Return :func:`find_compiler`'s; raises WorkError if there is none."""
    found = find_compiler()
    if found is None:
        named = environment.nvrtc()
        raise WorkError(
            "compiling a kernel",
            found="neither NVRTC nor nvcc" + (f"; NVRTC names {named}, which does not load" if named else ""),
            expected="NVRTC, which comes with torch's builds for CUDA, or a pack of compiled kernels",
            run="pip install nvidia-cuda-nvrtc, or autotune kernels import PACK",
        )  # fmt: skip
    return found


def _libraries() -> Iterator[str]:
    """List where NVRTC may be: the variable NVRTC, packages, the toolkit of nvcc, the loader's folders."""
    named = environment.nvrtc()
    if named is not None:
        yield named
        return
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    packaged = [path for folder in folders for path in folder.glob("*/lib/libnvrtc.so.*")]
    cuda = cuda_of_torch()
    preferred = f"libnvrtc.so.{cuda[0]}" if cuda else NAMES[0]
    yield from map(str, sorted(packaged, key=lambda path: (path.name != preferred, path.name)))
    nvcc = environment.nvcc()
    if nvcc is not None:
        toolkit = Path(nvcc).resolve().parent.parent
        yield from (
            str(path) for folder in ("lib64", "lib") for path in sorted((toolkit / folder).glob("libnvrtc.so.*"))
        )
    yield from sorted(NAMES, key=lambda name: name != preferred)


def _strings(values: Sequence[str]) -> "ctypes.Array[ctypes.c_char_p]":
    return (ctypes.c_char_p * len(values))(*(value.encode() for value in values))


def _from_first_error(log: str) -> str:
    first = re.search(r"^.*\berror\b", log, re.MULTILINE)  # most of the later errors follow from it
    return log[first.start() :][:KEPT_CHARACTERS] if first else log[-KEPT_CHARACTERS:]


def _resources(log: str) -> dict[str, int]:
    """Read the resources from the words of ptxas."""
    registers = re.search(r"Used (\d+) registers", log)
    stack = re.search(r"(\d+) bytes stack frame", log)
    return {"registers": int(registers[1]) if registers else 0, "spilled_bytes": int(stack[1]) if stack else 0}
