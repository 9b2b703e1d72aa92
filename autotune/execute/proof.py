"""Prove each backend on a toy model in a process of its own: build, load, run, compare."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autotune import registry
from autotune.device import Device
from autotune.execute.server import StepResult, WorkerServer
from autotune.scratch import ScratchFolder

PROOF_TIMEOUT_S = 300.0
TOLERANCE = 2e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Whether a backend works on a device; where not, the reason and the remedy. ``signal_error``: the toy's."""

    backend: str
    works: bool
    reason: str = ""
    remedy: str = ""
    seconds: float = 0.0
    signal_error: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def prove(names: Sequence[str], device: Device, on_proof: Callable[[Proof], None] | None = None) -> list[Proof]:
    """Prove the named backends one after the other; nothing that one of them does can hurt the next."""
    proofs: list[Proof] = []
    with ScratchFolder("doctor") as folder, WorkerServer(folder, work="autotune doctor") as server:
        server.preload(["torch"])
        for name in names:
            proofs.append(_prove_one(name, device, server, folder))
            if on_proof is not None:
                on_proof(proofs[-1])
    return proofs


def prove_backend(
    request: Mapping[str, Any],
    hold: Callable[[str, bool], AbstractContextManager[None]],
    enter: Callable[[str], None],
) -> dict[str, Any]:
    """The worker's half: the first default configuration of one backend on a small convolutional model.

    ``hold`` waits for the device, alone or not, and is in a stage from then on; ``enter`` only is.
    """
    import torch

    from autotune.accuracy import signal_errors
    from autotune.model import capture, source
    from autotune.model.precision import flat_module
    from autotune.runtime import artifact

    enter("build")
    device, folder = Device.from_dict(request["device"]), Path(request["folder"])
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(8, 16),
    ).eval()  # fmt: skip
    inputs = [torch.randn(1, 3, 32, 32) for _ in range(8)]
    captured = capture.capture("toy", 1, module, {"input": inputs[0]})
    source.write(folder / "model", captured, {"input": inputs[0]}, factory=None, seed=0)
    model = source.CapturedModel(folder / "model")
    backend = registry.backend(request["backend"])
    configuration = next(iter(backend.space(device, captured.workload, has_factory=False).defaults))
    target = folder / "artifact"
    target.mkdir()
    with hold("build", backend.times_kernels_at_build(configuration)):
        backend.build(model, configuration, device, target)
    artifact.describe(target, configuration, captured.workload, captured.output_schema, example={"input": inputs[0]})
    with hold("load", backend.times_kernels_at_load(configuration)):
        runner = artifact.load_runner(target, device)
        enter("check")
        reference = flat_module(captured.program)
        with torch.no_grad():
            expected = [tuple(reference(tensor)) for tensor in inputs]
        answers = [tuple(part.cpu() for part in runner(tensor.to(device.torch_name))) for tensor in inputs]
    return {"signal_error": max(signal_errors(answers, expected)), "configuration": str(configuration)}


def _prove_one(name: str, device: Device, server: WorkerServer, folder: Path) -> Proof:
    availability = registry.backend(name).probe(device)
    if not availability.works:
        return Proof(backend=name, works=False, reason=availability.reason, remedy=availability.remedy)
    begin = time.monotonic()
    own = folder / name
    own.mkdir()
    request = {"backend": name, "device": device.as_dict(), "folder": str(own)}
    result = server.run("prove", request, timeout_s=PROOF_TIMEOUT_S)
    reason, error = _reason(result), (result.value or {}).get("signal_error")
    remedy = f"the log says: {_last_lines(result)}" if result.failure else ""
    return Proof(
        backend=name, works=not reason, reason=reason, remedy=remedy if reason else "",
        seconds=time.monotonic() - begin, signal_error=error,
    )  # fmt: skip


def _reason(result: StepResult) -> str:
    if result.failure is not None:
        return str(result.failure)
    error = (result.value or {})["signal_error"]
    return "" if error <= TOLERANCE else f"check: wrong answers: signal error {error:.3g}, limit {TOLERANCE:g}"


def _last_lines(result: StepResult) -> str:
    tail = result.failure.log_tail.strip().splitlines()[-3:] if result.failure else []
    return " | ".join(line.strip() for line in tail) or "nothing"
