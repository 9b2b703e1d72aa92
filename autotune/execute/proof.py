"""Prove each backend on a toy model in a process of its own: build, load, run, compare; several side by side."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from autotune import registry
from autotune.errors import WorkError
from autotune.execute.answers import Done, ProveAnswer
from autotune.execute.executor import PRELOAD
from autotune.execute.requests import CaptureToyRequest, ProveRequest
from autotune.execute.server import WorkerServer
from autotune.execute.step_result import StepResult
from autotune.measure.lock import device_lock
from autotune.measure.lock_holders import Holders
from autotune.records.device import Device
from autotune.records.trial import Failure
from autotune.scratch import ScratchFolder

PROOF_TIMEOUT_S = 300.0
TOLERANCE = 2e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """The result for one backend on one device: if it works, else the reason and the remedy.

    ``found`` says that everything the backend needs is there, ``proved`` that it was tried. A backend that was found
    and not tried has ``works`` None. ``signal_error`` is that of the toy model.
    """

    device: str
    device_class: str
    backend: str
    found: bool
    proved: bool
    works: bool | None
    reason: str = ""
    remedy: str = ""
    seconds: float = 0.0
    signal_error: float | None = None

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return asdict(self)


def look(names: Sequence[str], devices: Sequence[Device]) -> list[Proof]:
    """Look if everything that the backends need is there, device by device; nothing is built or imported."""
    return [_looked(name, device) for device in devices for name in names]


def prove(
    names: Sequence[str],
    devices: Sequence[Device],
    *,
    host: Device,
    on_proof: Callable[[Proof], None] = lambda _: None,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Proof]:
    """Prove the named backends on each of the devices; no backend can hurt another.

    As many run at once as the ``host`` has cores. If another process times something on one of the devices, one runs
    after the other. ``on_proof`` gets each proof as it ends; the answer is in the order of devices and names.
    """
    # On 2 cores a proof kept 0.9 of one core busy.
    proofs: dict[tuple[str, str], Proof] = {}
    pairs = [(name, device) for device in devices for name in names]

    def take(proof: Proof) -> None:
        proofs[proof.device, proof.backend] = proof
        on_proof(proof)

    left = []
    for name, device in pairs:
        looked = _looked(name, device)
        left.append((name, device)) if looked.found else take(looked)
    if left:
        with _shared([*devices, host], tell) as quiet, _toy([name for name, _ in left]) as (server, toy):
            for proof in _side_by_side(server, toy, sorted(left, key=_slowest_first), host.cores if quiet else 1):
                take(proof)
    return [proofs[device.torch_name, name] for name, device in pairs]


@contextlib.contextmanager
def _shared(devices: Sequence[Device], tell: Callable[[str], None]) -> Iterator[bool]:
    """Keep other processes from timing on the devices meanwhile; False, without waiting, if one does so now."""
    with contextlib.ExitStack() as held:
        try:
            for uuid in {device.uuid for device in devices}:
                held.enter_context(device_lock(uuid, exclusive=False, on_wait=_give_up))
        except _InUseError as used:
            tell(f"{used}: one proof runs after the other meanwhile, to disturb it less")
        except WorkError as error:
            tell(f"one proof runs after the other: {error}")
        else:
            yield True
            return
        held.close()
        yield False


class _InUseError(Exception):
    """Another process holds a device."""


def _give_up(holders: Holders) -> None:
    raise _InUseError(f"a device is in use, {holders.text}")


@contextlib.contextmanager
def _toy(names: Sequence[str]) -> Iterator[tuple[WorkerServer, "StepResult[Done] | Path"]]:
    """A server for builds of these backends, and the folder of the captured toy, or the failure of its capture."""
    with ScratchFolder("doctor") as folder, WorkerServer(folder, work="autotune doctor") as server:
        server.preload(PRELOAD)
        toy = folder / "toy"
        captured = server.run(
            "capture_toy", CaptureToyRequest(folder=toy).as_dict(), timeout_s=PROOF_TIMEOUT_S,
            meanwhile=lambda: server.preload(registry.build_modules(names)),
        )  # fmt: skip
        yield server, toy if captured.failure is None else captured.typed(Done)


def _side_by_side(
    server: WorkerServer, toy: "StepResult[Done] | Path", pairs: Sequence[tuple[str, Device]], at_once: int
) -> Iterator[Proof]:
    """Yield each proof as it ends; a caller that stops waiting ends those that run."""
    with ThreadPoolExecutor(min(at_once, len(pairs)), thread_name_prefix="autotune-proof") as pool:
        running = [pool.submit(_prove_one, name, device, server, toy) for name, device in pairs]
        try:
            for proof in as_completed(running):
                yield proof.result()
        except BaseException:
            for proof in running:
                proof.cancel()
            server.stop()
            raise


def _slowest_first(pair: tuple[str, Device]) -> tuple[bool, bool]:
    name, device = pair
    return not registry.builds_slowly(name), device.kind != "cuda"


def _looked(name: str, device: Device) -> Proof:
    available = registry.backend(name).probe(device)
    return Proof(
        device=device.torch_name, device_class=device.device_class, backend=name, found=available.works, proved=False,
        works=None if available.works else False, reason=available.reason, remedy=available.remedy,
    )  # fmt: skip


def _prove_one(name: str, device: Device, server: WorkerServer, toy: "StepResult[Done] | Path") -> Proof:
    begin = time.monotonic()
    failure, error = (None, None) if isinstance(toy, Path) else (toy.failure, None)
    if isinstance(toy, Path):
        own = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=toy.parent))
        shutil.copytree(toy, own / "model")
        request = ProveRequest(folder=own, backend=name, device=device)
        result = server.run("prove", request.as_dict(), timeout_s=PROOF_TIMEOUT_S).typed(ProveAnswer)
        failure = result.failure
        error = None if result.value is None else result.value.signal_error
    reason = _reason(failure, error)
    remedy = f"the log says: {_last_lines(failure)}" if failure else ""
    return Proof(
        device=device.torch_name, device_class=device.device_class, backend=name, found=True, proved=True,
        works=not reason, reason=reason, remedy=remedy if reason else "", seconds=time.monotonic() - begin,
        signal_error=error,
    )  # fmt: skip


def _reason(failure: Failure | None, error: float | None) -> str:
    if failure is not None or error is None:
        return str(failure)
    return "" if error <= TOLERANCE else f"check: wrong answers: signal error {error:.3g}, limit {TOLERANCE:g}"


def _last_lines(failure: Failure) -> str:
    tail = failure.log_tail.strip().splitlines()[-3:]
    return " | ".join(line.strip() for line in tail) or "nothing"
