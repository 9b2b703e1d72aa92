"""Prove each backend on a toy model in a process of its own: build, load, run, compare; several side by side."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autotune import registry
from autotune.errors import WorkError
from autotune.execute.executor import PRELOAD
from autotune.execute.input_sets import read_sets, write_sets
from autotune.execute.server import StepResult, WorkerServer
from autotune.measure.lock import device_lock
from autotune.measure.lock_holders import Holders
from autotune.records.device import Device
from autotune.scratch import ScratchFolder

PROOF_TIMEOUT_S = 300.0
TOLERANCE = 2e-2
INPUTS, REFERENCES = "inputs.safetensors", "references.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Whether a backend works on a device; where not, the reason and the remedy. ``signal_error``: the toy's.

    ``found`` says that what the backend needs is there, ``proved`` that it was tried; a backend that was found and not
    tried has ``works`` None.
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

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def look(names: Sequence[str], devices: Sequence[Device]) -> list[Proof]:
    """Look whether what the backends need is there, device by device; nothing is built or imported."""
    return [_looked(name, device) for device in devices for name in names]


def prove(
    names: Sequence[str],
    devices: Sequence[Device],
    *,
    host: Device,
    on_proof: Callable[[Proof], None] = lambda _: None,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Proof]:
    """Prove the named backends on each of the devices; nothing that one of them does can hurt another.

    As many run at once as the ``host`` has cores: on 2 cores a proof kept 0.9 of one busy. Where another process times
    something on one of the devices, one runs after the other. ``on_proof`` gets each as it ends; the answer is in the
    order of devices and names.
    """
    proofs: dict[tuple[str, str], Proof] = {}
    asked = [(name, device) for device in devices for name in names]

    def take(proof: Proof) -> None:
        proofs[proof.device, proof.backend] = proof
        on_proof(proof)

    left = []
    for name, device in asked:
        found = _looked(name, device)
        left.append((name, device)) if found.found else take(found)
    if left:
        with _shared([*devices, host], tell) as quiet, _toy() as (server, toy):
            for proof in _side_by_side(server, toy, sorted(left, key=_slowest_first), host.cores if quiet else 1):
                take(proof)
    return [proofs[device.torch_name, name] for name, device in asked]


def capture_toy(request: Mapping[str, Any], enter: Callable[[str], None]) -> dict[str, Any]:
    """A worker's step: a small convolutional model, captured once for all proofs, with inputs and answers to them."""
    import torch

    from autotune.model import capture, source
    from autotune.model.precision import flat_module

    enter("build")
    folder = Path(request["folder"])
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(8, 16),
    ).eval()  # fmt: skip
    inputs = [torch.randn(1, 3, 32, 32) for _ in range(8)]
    captured = capture.capture("toy", 1, module, {"input": inputs[0]})
    source.write(folder, captured, {"input": inputs[0]}, factory=None, seed=0)
    reference = flat_module(captured.program)
    outputs = [spec.name for spec in captured.workload.outputs]
    with torch.no_grad():
        answers = [dict(zip(outputs, reference(tensor), strict=True)) for tensor in inputs]
    write_sets(folder / INPUTS, [{"input": tensor} for tensor in inputs])
    write_sets(folder / REFERENCES, answers)
    return {}


def prove_backend(request: Mapping[str, Any], enter: Callable[[str], None]) -> dict[str, Any]:
    """A worker's step: build the first default configuration of one backend for the toy, and compare its answers."""
    import torch

    from autotune.accuracy import signal_errors
    from autotune.model.source import CapturedModel
    from autotune.runtime import artifact

    enter("build")
    device, folder = Device.from_dict(request["device"]), Path(request["folder"])
    model = CapturedModel(folder / "model")
    backend = registry.backend(request["backend"])
    configuration = next(iter(backend.space(device, model.workload, has_factory=False).defaults))
    target = folder / "artifact"
    target.mkdir()
    backend.build(model, configuration, device, target)
    artifact.describe(target, configuration, model.workload, model.output_schema, example=model.example())
    enter("load")
    runner = artifact.load_runner(target, device)
    enter("check")
    inputs = read_sets(folder / "model" / INPUTS, model)
    expected = read_sets(folder / "model" / REFERENCES, model, outputs=True)
    with torch.no_grad():
        answers = [runner(*(tensor.to(device.torch_name) for tensor in each)) for each in inputs]
    found = [tuple(part.cpu() for part in answer) for answer in answers]
    return {"signal_error": max(signal_errors(found, expected)), "configuration": str(configuration)}


@contextlib.contextmanager
def _shared(devices: Sequence[Device], tell: Callable[[str], None]) -> Iterator[bool]:
    """Keep the devices from being timed on meanwhile; False, without waiting, where that is not to be had now."""
    with contextlib.ExitStack() as held:
        try:
            for uuid in {device.uuid for device in devices}:
                held.enter_context(device_lock(uuid, exclusive=False, on_wait=_give_up))
        except _InUseError as used:
            tell(f"{used}: one proof runs after the other meanwhile, so as to disturb it less")
        except WorkError as error:
            tell(f"one proof runs after the other: {error}")
        else:
            yield True
            return
        held.close()
        yield False


class _InUseError(Exception):
    """Somebody else holds a device."""


def _give_up(holders: Holders) -> None:
    raise _InUseError(f"a device is in use, {holders.text}")


@contextlib.contextmanager
def _toy() -> Iterator[tuple[WorkerServer, "StepResult | Path"]]:
    """A server, and the folder that holds the captured toy, or why it could not be captured."""
    with ScratchFolder("doctor") as folder, WorkerServer(folder, work="autotune doctor") as server:
        server.preload(PRELOAD)
        toy = folder / "toy"
        captured = server.run(
            "capture_toy", {"folder": str(toy)}, timeout_s=PROOF_TIMEOUT_S,
            meanwhile=lambda: server.preload(registry.build_modules()),
        )  # fmt: skip
        yield server, toy if captured.failure is None else captured


def _side_by_side(
    server: WorkerServer, toy: "StepResult | Path", asked: Sequence[tuple[str, Device]], at_once: int
) -> Iterator[Proof]:
    """Yield each proof as it ends; whoever stops waiting ends those that run."""
    with ThreadPoolExecutor(min(at_once, len(asked)), thread_name_prefix="autotune-proof") as pool:
        running = [pool.submit(_prove_one, name, device, server, toy) for name, device in asked]
        try:
            for proof in as_completed(running):
                yield proof.result()
        except BaseException:
            for proof in running:
                proof.cancel()
            server.stop()
            raise


def _slowest_first(asked: tuple[str, Device]) -> tuple[bool, bool]:
    name, device = asked
    return not registry.builds_slowly(name), device.kind != "cuda"


def _looked(name: str, device: Device) -> Proof:
    there = registry.backend(name).probe(device)
    return Proof(
        device=device.torch_name, device_class=device.device_class, backend=name, found=there.works, proved=False,
        works=None if there.works else False, reason=there.reason, remedy=there.remedy,
    )  # fmt: skip


def _prove_one(name: str, device: Device, server: WorkerServer, toy: "StepResult | Path") -> Proof:
    begin = time.monotonic()
    result, error = toy, None
    if isinstance(toy, Path):
        own = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=toy.parent))
        shutil.copytree(toy, own / "model")
        request = {"backend": name, "device": device.as_dict(), "folder": str(own)}
        result = server.run("prove", request, timeout_s=PROOF_TIMEOUT_S)
        error = (result.value or {}).get("signal_error")
    assert isinstance(result, StepResult)
    reason = _reason(result)
    remedy = f"the log says: {_last_lines(result)}" if result.failure else ""
    return Proof(
        device=device.torch_name, device_class=device.device_class, backend=name, found=True, proved=True,
        works=not reason, reason=reason, remedy=remedy if reason else "", seconds=time.monotonic() - begin,
        signal_error=error,
    )  # fmt: skip


def _reason(result: StepResult) -> str:
    if result.failure is not None:
        return str(result.failure)
    error = (result.value or {})["signal_error"]
    return "" if error <= TOLERANCE else f"check: wrong answers: signal error {error:.3g}, limit {TOLERANCE:g}"


def _last_lines(result: StepResult) -> str:
    tail = result.failure.log_tail.strip().splitlines()[-3:] if result.failure else []
    return " | ".join(line.strip() for line in tail) or "nothing"
