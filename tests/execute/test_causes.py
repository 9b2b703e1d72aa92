"""What an exception stands for: by its type or its code, by a text only if that is a library's own."""

import errno
import subprocess
import sys

import numpy
import pytest
import torch

from autotune.errors import DriverError, ModelError, WorkError
from autotune.execute.causes import cause_of

MUCH = 1 << 50
"""More bytes than a process has addresses for."""

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1 GiB"
ALLOCATOR = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 5 bytes"
LOST = "CUDA error: an illegal memory access was encountered"


def raised(call):
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def kind(error):
    cause = cause_of(error)
    return None if cause is None else (cause.kind, cause.words)


class OfOnnxRuntime(Exception):
    """Of the module that ONNX Runtime's own exceptions are of."""

    __module__ = "onnxruntime.capi.onnxruntime_pybind11_state"


HOST, DEVICE = ("out_of_memory", "host memory"), ("out_of_memory", "device memory")
CRASH = ("crash", "the process lost its context on the device")


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: torch.empty(MUCH), HOST),
        (lambda: torch.nn.Linear(4, 4)(torch.zeros(1, 4).expand(1 << 46, 4)), HOST),
        (lambda: torch.jit.script(torch.nn.Upsample(size=1 << 50))(torch.zeros(1, 1, 4)), HOST),
        (lambda: numpy.zeros(MUCH), HOST),
        (lambda: bytearray(1 << 60), HOST),
    ],
)
def test_memory_that_libraries_really_lack_is_the_hosts(call, expected):
    assert kind(raised(call)) == expected


def with_code(code):
    error = torch.AcceleratorError(f"CUDA error: number {code}")
    error.error_code = code
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), HOST),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), HOST),
        (OSError(errno.ENOSPC, "out of memory"), None),
        (torch.OutOfMemoryError("it is full"), DEVICE),
        (with_code(2), DEVICE),
        (with_code(700), CRASH),
        (with_code(719), CRASH),
        (with_code(1), None),
        (torch.AcceleratorError(LOST), CRASH),
        (DriverError("a launch", found="out of memory", code=700), CRASH),
        (DriverError("a module", code=2), DEVICE),
        (DriverError("out of memory", code=209), None),
        (OfOnnxRuntime("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 700: an illegal memory access ; GPU=0"), CRASH),
        (OfOnnxRuntime("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 2: out of memory ; GPU=0"), DEVICE),
        (OfOnnxRuntime("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 98: invalid device function"), None),
        (
            OfOnnxRuntime("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 17592"),
            ("out_of_memory", "memory"),
        ),
    ],
)
def test_types_and_codes_decide(error, expected):
    assert kind(error) == expected


@pytest.mark.parametrize("text", [OUT_OF_MEMORY, ALLOCATOR, LOST, "std::bad_alloc", "out of memory on cuda:0"])
@pytest.mark.parametrize("of", [ValueError, RuntimeError, ModelError, WorkError, type("Own", (RuntimeError,), {})])
def test_what_a_users_code_says_is_no_sign(of, text):
    def forward():
        raise of(text)

    assert kind(raised(forward)) is None
    assert kind(of(text)) is None


def test_a_text_in_a_message_of_python_itself_is_no_sign():
    assert kind(raised(lambda: open(f"/nowhere/{OUT_OF_MEMORY}"))) is None  # noqa: SIM115
    assert kind(raised(lambda: int(ALLOCATOR))) is None
    assert kind(raised(lambda: {}[LOST])) is None
    assert kind(raised(lambda: torch.load(f"/nowhere/{LOST}/std::bad_alloc"))) is None


def test_the_exception_that_another_was_raised_from_counts():
    def wrapped(inner):
        try:
            inner()
        except Exception as error:
            raise ModelError("it cannot be captured", found=str(error)) from error

    assert kind(raised(lambda: wrapped(lambda: torch.empty(MUCH)))) == HOST

    def own():
        raise RuntimeError(ALLOCATOR)

    assert kind(raised(lambda: wrapped(own))) is None
    error = ValueError("in a circle")
    error.__cause__ = TypeError("of causes")
    error.__cause__.__cause__ = error
    assert kind(error) is None


def test_a_library_that_was_never_imported_is_not_imported_for_it():
    code = (
        "import sys; from autotune.execute.causes import cause_of; "
        "cause_of(RuntimeError('no')); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
