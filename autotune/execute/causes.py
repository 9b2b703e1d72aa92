"""Why a step raised what it raised: memory that did not suffice, or a context that the device has lost: cause_of.

Types, error numbers and CUDA's error codes decide. Texts are looked at only if they are a library's own: what a user's
code says with ``raise`` is never taken for a sign of anything.
"""

import errno
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from dis import opmap
from typing import Any

from autotune.errors import DriverError
from autotune.records.trial import FailureKind

LIBRARIES = ("torch", "onnxruntime", "openvino", "triton")

MEMORY_ALLOCATION = 2
LOST_CONTEXT = frozenset({214, 220, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721})
"""CUDA's codes after which "the process must be terminated and relaunched", or the GPU itself is faulty (CUDA runtime
API, cudaError_t); the driver's are the same numbers."""

_CODE = re.compile(r"\bCUDA failure (\d+): ")
"""ONNX Runtime's CUDA provider says the code."""

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
    """The kind of a failure, and the words that its detail begins with."""

    kind: FailureKind
    words: str


_CRASH = Cause(kind="crash", words="the process lost its context on the device")
_HOST, _DEVICE, _MEMORY = (
    Cause(kind="out_of_memory", words=f"{where}memory") for where in ("host ", "device ", "")
)  # fmt: skip


def cause_of(error: BaseException) -> Cause | None:
    """Say which of the two an exception, or one that it was raised ``from``, stands for; ``None`` if neither."""
    for one in _line(error):
        cause = _by_type(one)
        if cause is None and _is_of_a_library(one):
            cause = _by_text(str(one))
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
    torch: Any = sys.modules.get("torch")  # what was never imported has raised nothing
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
    """Whether the text is a library's own: its class is one's, or compiled code raised it without a class of its own.

    Compiled code of torch, OpenVINO and Triton raises RuntimeError; no ``raise`` of Python's stands in that place.
    """
    if type(error).__module__.partition(".")[0] in LIBRARIES:
        return True
    at = error.__traceback__
    if type(error) is not RuntimeError or at is None:
        return False
    while at.tb_next is not None:
        at = at.tb_next
    return at.tb_frame.f_code.co_code[at.tb_lasti] != opmap["RAISE_VARARGS"]
