"""The cause of an exception in a step: memory that did not suffice, or a context that the device has lost: cause_of.

Types, error numbers and CUDA's error codes decide. Texts are read only if they are a library's own: the text of an
exception that a user's code raises never decides anything.
"""

import errno
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from dis import opmap

from autotune.errors import DriverError
from autotune.records.trial import FailureKind

LIBRARIES = ("torch", "onnxruntime", "openvino", "triton")

MEMORY_ALLOCATION = 2
LOST_CONTEXT = frozenset({214, 220, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721})
"""CUDA's codes after which "the process must be terminated and relaunched", or the GPU itself is faulty (CUDA runtime
API, cudaError_t); the driver's are the same numbers."""

_CODE = re.compile(r"\bCUDA failure (\d+): ")
"""ONNX Runtime's CUDA provider writes the code."""

_LOST = re.compile(
    r"(?:CUDA error|Triton Error \[CUDA\]): (?:an illegal memory access was encountered|unspecified launch failure"
    r"|misaligned address|an illegal instruction was encountered|device-side assert triggered|hardware stack error"
    r"|uncorrectable ECC error encountered|invalid program counter)"
)
_OF_DEVICE = re.compile(
    r"\bCUDA out of memory\. Tried to allocate |(?:CUDA error|Triton Error \[CUDA\]): out of memory"
    r"|\b(?:CUBLAS|CUDNN)_STATUS_ALLOC_FAILED\b"
)
_OF_HOST = re.compile(
    r"DefaultCPUAllocator: (?:can't allocate memory|not enough memory): you tried to allocate \d+ bytes"
    r"|\bstd::bad_alloc\b|Cannot allocate memory \(12\)|\bcc1plus: out of memory allocating \d+ bytes"
)
_OF_EITHER = re.compile(r"Failed to allocate memory for requested buffer of size \d+")
"""ONNX Runtime's arena, whose message does not say of which memory it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """The kind of a failure, and the first words of its detail."""

    kind: FailureKind
    words: str


_CRASH = Cause(kind="crash", words="the process lost its context on the device")
_HOST, _DEVICE, _MEMORY = (
    Cause(kind="out_of_memory", words=f"{place}memory") for place in ("host ", "device ", "")
)  # fmt: skip


def cause_of(error: BaseException) -> Cause | None:
    """Return the cause of an exception, or of one that it was raised ``from``; ``None`` if it is neither of the two."""
    for raised in _line(error):
        cause = _by_type(raised)
        if cause is None and _is_of_a_library(raised):
            cause = _by_text(str(raised))
        if cause is not None:
            return cause
    return None


def _line(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__


def _by_type(error: BaseException) -> Cause | None:
    torch = sys.modules.get("torch")  # a library that was never imported has raised nothing
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return _HOST
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return _DEVICE
    if isinstance(error, DriverError):
        return _by_code(error.code)
    if torch is not None and isinstance(error, torch.AcceleratorError):
        return _by_code(getattr(error, "error_code", None))
    return None


def _by_code(code: int | None) -> Cause | None:
    return _CRASH if code in LOST_CONTEXT else _DEVICE if code == MEMORY_ALLOCATION else None


def _by_text(text: str) -> Cause | None:
    if code := _CODE.search(text):
        return _by_code(int(code[1]))
    for pattern, cause in ((_LOST, _CRASH), (_OF_DEVICE, _DEVICE), (_OF_HOST, _HOST), (_OF_EITHER, _MEMORY)):
        if pattern.search(text):
            return cause
    return None


def _is_of_a_library(error: BaseException) -> bool:
    """Return whether the text is a library's own: its class is a library's, or a library's compiled code raised it."""
    # Compiled code of torch, OpenVINO and Triton raises RuntimeError; there is no ``raise`` of Python at that place.
    if type(error).__module__.partition(".")[0] in LIBRARIES:
        return True
    at = error.__traceback__
    if type(error) is not RuntimeError or at is None:
        return False
    while at.tb_next is not None:
        at = at.tb_next
    return at.tb_frame.f_code.co_code[at.tb_lasti] != opmap["RAISE_VARARGS"]
