"""A cold start of a bundle in a fresh process, as a server makes it: serve_check, ServeCheck."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from autotune.deploy.signing import PublicKey
from autotune.errors import WorkError

FIRST_ANSWER_S = 1.5
"""The aim for the first answer, beyond the import of torch."""

LIMIT_S = 5.0
"""The most seconds for which the steady latency is sampled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeCheck:
    """The figures of a cold start, beside those of the manifest.

    ``first_answer_s`` is from the end of the import of torch to the first answer: the bundle is verified and loaded in
    it. ``latency_ms`` is the steady median with its 95% ``interval_ms``; ``stored_ms`` and ``stored_interval_ms`` are
    those of the finals. ``peak_bytes`` is the largest resident memory of the process, ``device_bytes`` the peak on the
    GPU (``None`` on a CPU). ``errors`` has for each output its error relative to the model's signal, or for integers
    the share that agrees; ``failure`` says why the answer is not accurate, and is empty if it is.
    """

    plan: str
    configuration: str
    device: str
    verdict: str
    signature: str
    import_s: float
    first_answer_s: float
    latency_ms: float
    interval_ms: tuple[float, float]
    stored_ms: float
    stored_interval_ms: tuple[float, float]
    flags: tuple[str, ...]
    peak_bytes: int
    device_bytes: int | None
    errors: Mapping[str, float] = field(default_factory=dict)
    limit: float
    failure: str = ""

    @property
    def accurate(self) -> bool:
        """Whether the bundle answers its example like the model."""
        return not self.failure

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {**asdict(self), "accurate": self.accurate}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ServeCheck":
        """Read what :meth:`as_dict` wrote."""
        values = {name: value for name, value in data.items() if name != "accurate"}
        for name in ("interval_ms", "stored_interval_ms", "flags"):
            values[name] = tuple(values[name])
        return cls(**values)


def serve_check(
    bundle: Path | str,
    *,
    device: str | None = None,
    require_signature: PublicKey | Sequence[PublicKey] | None = None,
) -> ServeCheck:
    """Load a bundle in a fresh process, let it answer its example, and time it there.

    Errors are those of :func:`autotune.load_bundle`, except that a plan of another device runs if it can; WorkError if
    the process fails.
    """
    from autotune.deploy.bundle import require_runs
    from autotune.deploy.bundle_manifest import read_manifest
    from autotune.deploy.portability import bundle_portability
    from autotune.deploy.signing import PublicKeys

    keys = None if require_signature is None else PublicKeys(require_signature)
    manifest = read_manifest(Path(bundle), keys)
    require_runs(Path(bundle), bundle_portability(manifest.plan, device))
    several = [require_signature] if isinstance(require_signature, str | bytes | Path) else require_signature
    texts = None if several is None else [key.decode() if isinstance(key, bytes) else str(key) for key in several]
    request = {"bundle": str(bundle), "device": device, "keys": texts}
    done = subprocess.run(
        [sys.executable, "-m", "autotune.deploy.serve_check", json.dumps(request)], capture_output=True, text=True,
        check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}, and no message"]
        raise WorkError(
            f"the bundle {bundle} did not serve", found="\n    ".join(lines[-12:]), expected="an answer to its example",
            run=f"autotune plan check {bundle}",
        )  # fmt: skip
    return ServeCheck.from_dict(json.loads(done.stdout))


def _served(request: Mapping[str, Any], begin: float) -> ServeCheck:
    """Start cold in this process; ``begin`` is the time at which it began."""
    import torch

    imported = time.perf_counter()
    from autotune.deploy.bundle import verified_copy
    from autotune.deploy.bundle_manifest import read_manifest
    from autotune.deploy.measuring import measure
    from autotune.deploy.model import open_folder
    from autotune.deploy.portability import bundle_portability
    from autotune.deploy.recheck import Example
    from autotune.deploy.signing import PublicKeys
    from autotune.measure.memory import PeakMemory

    keys, folder = request["keys"], Path(request["bundle"])
    manifest = read_manifest(folder, None if keys is None else PublicKeys(keys))
    portable = bundle_portability(manifest.plan, request["device"])
    device, on_gpu = portable.device, portable.device.kind == "cuda"
    memory = PeakMemory(device)
    if on_gpu:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        memory.before()
    with verified_copy(folder, manifest) as artifact:
        fast = open_folder(replace(manifest.plan, device=device), artifact)
        example = Example.of(artifact)
    answered = tuple(tensor.cpu() for tensor in fast.flat(example.inputs))
    first = time.perf_counter()
    verdict = example.verdict(fast.plan.objective, answered)
    placed = {name: tensor.to(device.torch_name) for name, tensor in example.inputs.items()}
    measured = measure(fast, placed, device=device.torch_name, limit_s=LIMIT_S)
    reading = memory.after() if on_gpu else {}
    plan = manifest.plan
    return ServeCheck(
        plan=plan.uid, configuration=str(plan.configuration), device=device.device_class, verdict=portable.verdict,
        signature=manifest.signature, import_s=imported - begin, first_answer_s=first - imported,
        latency_ms=measured.latency_ms, interval_ms=measured.interval_ms, stored_ms=plan.latency_ms,
        stored_interval_ms=plan.interval_ms, flags=measured.flags, peak_bytes=_peak_bytes(),
        device_bytes=int(str(reading["peak_bytes"])) if reading.get("available") else None,
        errors=dict(verdict.figures), limit=plan.objective.signal_error,
        failure="" if verdict.failure is None else verdict.failure.detail,
    )  # fmt: skip


def _peak_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _main(arguments: Sequence[str], begin: float) -> None:
    """Print the figures of a cold start as one JSON document; all other output goes to standard error."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    own = os.dup(1)
    os.dup2(2, 1)
    checked = _served(json.loads(arguments[0]), begin)
    with os.fdopen(own, "w") as stream:
        json.dump(checked.as_dict(), stream)


if __name__ == "__main__":
    _main(sys.argv[1:], time.perf_counter())
