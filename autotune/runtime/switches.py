"""The global switches of torch that a configuration decides: TF32, cuDNN's algorithm search, threads, autocast.

A worker calls :meth:`Switches.apply` before each candidate, so that nothing leaks from one into the next. In the user's
process a runner holds an :class:`Overlay` for the length of a call: it sets only the switches that differ, and puts
them back.

TF32 is set through the older interface (``float32_matmul_precision``, ``cudnn.allow_tf32``) on purpose: inductor reads
that one, and torch refuses to read it after the newer ``fp32_precision`` was set. A user's setting through the newer
interface is read and restored through the newer one.
"""

import threading
from dataclasses import dataclass
from types import ModuleType
from typing import Literal, Protocol

from autotune.records.configuration import Configuration

TF32 = Literal["default", "on", "off"]
Shared = tuple[bool, tuple[object, ...]]
"""The state that belongs to the process: whether cuDNN searches, and the precision of fp32 (see ``_read_shared``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Switches:
    """The state of torch's global switches that a configuration needs.

    ``tf32``: ``default`` is the framework's own choice (on for convolutions, off for matrix products); ``threads`` is
    ``None`` on a GPU, where the number of threads is left alone.
    """

    tf32: TF32 = "default"
    threads: int | None = None
    cudnn_benchmark: bool = False

    def __post_init__(self) -> None:
        if self.tf32 not in ("default", "on", "off"):
            raise ValueError(f"tf32 must be default, on or off, found {self.tf32!r}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, found {self.threads}")

    @classmethod
    def of(cls, configuration: Configuration) -> "Switches":
        """Read them from a configuration of any backend; without a parameter the framework's value stays."""
        threads = int(configuration.get("threads", 0))
        return cls(
            tf32=tf32_of(str(configuration.get("precision", "default"))),
            threads=threads or None,
            cudnn_benchmark=bool(configuration.get("cudnn_benchmark", False)),
        )

    @property
    def device_kind(self) -> str:
        """``cpu`` if threads are set, else ``cuda``; each kind has an autocast switch of its own."""
        return "cuda" if self.threads is None else "cpu"

    def apply(self) -> None:
        """Set every switch as this configuration needs it, also those that no configuration varies."""
        import torch

        if torch.are_deterministic_algorithms_enabled():  # setting it imports inductor, which takes seconds
            torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.enabled = True
        torch.backends.cudnn.deterministic = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = True
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = True
        torch.backends.cuda.matmul.allow_fp16_accumulation = False
        torch.set_default_dtype(torch.float32)
        torch.set_flush_denormal(False)
        for device in ("cpu", "cuda"):
            torch.set_autocast_enabled(device, False)
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        _set_shared(self.shared)

    def overlay(self) -> "Overlay":
        """Make the context manager that a runner holds during a call."""
        return Overlay(self)

    @property
    def shared(self) -> Shared:
        """The state that the process needs, in the form in which it is read."""
        return (self.cudnn_benchmark, ("high" if self.tf32 == "on" else "highest", self.tf32 != "off"))


def tf32_of(precision: str) -> TF32:
    """Return the state of TF32 for a precision: ``default`` is the framework's, ``tf32`` is on, others are off."""
    if precision == "default":
        return "default"
    return "on" if precision == "tf32" else "off"


class Overlay:
    """Holds switches for the length of a ``with`` block; can be entered again and from several threads.

    TF32 and cuDNN's search belong to the process, so calls that need the same switches share them, and a call that
    needs others waits until those have ended. A call inside another one, on the same thread, does not wait. If nothing
    differs, entering and leaving cost 2.8 µs (best of 60 runs on a loaded server; ``torch.no_grad()``: 2.1).
    """

    __slots__ = ("_device", "_shared", "_switches", "_threads", "_torch")

    def __init__(self, switches: Switches) -> None:
        import torch

        self._torch = torch  # an import statement in every call would cost as much as the reading
        self._switches = switches
        self._threads = switches.threads
        self._device = switches.device_kind
        self._shared = switches.shared

    def __enter__(self) -> None:
        torch = self._torch
        frames = _frames()
        own = (torch.get_num_threads(), torch.is_autocast_enabled(self._device))
        with _lock:
            while _held.calls and not frames and _held.switches != self._switches:
                _free.wait()
            before = _read_shared(torch)
            if before != self._shared:
                _set_shared(self._shared)
            if not _held.calls:
                _held.switches, _held.before = self._switches, before
            _held.calls += 1
        frames.append((own, before))
        if self._threads is not None and self._threads != own[0]:
            torch.set_num_threads(self._threads)
        if own[1]:
            torch.set_autocast_enabled(self._device, False)

    def __exit__(self, *error: object) -> None:
        torch = self._torch
        frames = _frames()
        own, before = frames.pop()
        if self._threads is not None and self._threads != own[0]:
            torch.set_num_threads(own[0])
        if own[1]:
            torch.set_autocast_enabled(self._device, True)
        with _lock:
            _held.calls -= 1
            if not frames and not _held.calls:
                # The last call restores the state from before the first one, whichever threads they were on.
                before = _held.before
                _free.notify_all()
            elif not frames:
                return
            if before != self._shared:
                _set_shared(before)


class _Held:
    """The present holders of the process's switches: the number of calls, the switches, and the state before them."""

    def __init__(self) -> None:
        self.calls = 0
        self.switches: Switches | None = None
        self.before: Shared = (False, ())


_held = _Held()
_lock = threading.Lock()
_free = threading.Condition(_lock)
_local = threading.local()


def _frames() -> list[tuple[tuple[int, bool], Shared]]:
    """List the calls that are under way on this thread, outermost first."""
    try:
        frames: list[tuple[tuple[int, bool], Shared]] = _local.frames
    except AttributeError:
        frames = _local.frames = []
    return frames


def _read_shared(torch: ModuleType) -> Shared:
    """Return cuDNN's search, and fp32 as a pair (older interface) or, if that refuses, as four values (newer)."""
    # torch.backends' own properties cost 1 to 2 µs each, these 0.2 µs.
    benchmark = torch._C._get_cudnn_benchmark()
    try:
        return (benchmark, (torch.get_float32_matmul_precision(), torch._C._get_cudnn_allow_tf32()))
    except RuntimeError:
        return (benchmark, tuple(owner.fp32_precision for owner in _owners()))


def _set_shared(shared: Shared) -> None:
    import torch

    torch.backends.cudnn.benchmark, fp32 = shared
    if len(fp32) == 2:
        torch.set_float32_matmul_precision(str(fp32[0]))
        torch.backends.cudnn.allow_tf32 = bool(fp32[1])
    else:
        for owner, value in zip(_owners(), fp32, strict=True):
            owner.fp32_precision = value


class _Owner(Protocol):
    """A part of ``torch.backends`` that has a precision of its own."""

    fp32_precision: object


def _owners() -> tuple[_Owner, ...]:
    import torch

    backends: ModuleType = torch.backends
    return (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul)
