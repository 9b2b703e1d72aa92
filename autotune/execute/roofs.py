"""The roofs of a device, measured in a process of its own: measure_roofs."""

from dataclasses import dataclass

from autotune.errors import StudyInterruptedError, WorkError
from autotune.execute.answers import RoofsAnswer
from autotune.execute.requests import RoofsRequest
from autotune.execute.server import WorkerServer
from autotune.measure.foreign import foreign_processes
from autotune.records.device import Device
from autotune.records.roofs import Roofs
from autotune.runtime import toolchain

TIMEOUT_S = 180.0
"""The time for a worker to start and to measure, which takes less than a minute, without waiting for the device."""

SAMPLING_S = 2.0
"""The longest time of the samples of one roof, as in the screening of a candidate."""

LIBRARIES = ("torch", "cuda", "driver")
"""The entries of the toolchain that decide how fast a product is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The bytes of a copied buffer and the rows of a square matrix, far beyond the caches of a kind of device."""

    buffer_bytes: int
    matrix_rows: int


SIZES = {
    "cpu": Sizes(buffer_bytes=256 << 20, matrix_rows=2048),
    "cuda": Sizes(buffer_bytes=1 << 30, matrix_rows=8192),
}


def measure_roofs(device: Device, server: WorkerServer, *, created: str, seed: int = 0) -> Roofs:
    """Measure the roofs of a device, alone on it; ``created`` is the date of the record.

    Raises WorkError if the worker ends without an answer, StudyInterruptedError if the server is stopped meanwhile.
    """
    sizes = SIZES[device.kind]
    request = RoofsRequest(
        device=device, buffer_bytes=sizes.buffer_bytes, matrix_rows=sizes.matrix_rows, limit_s=SAMPLING_S, seed=seed
    )
    server.preload(["torch", "numpy"])
    result = server.run("roofs", request.as_dict(), timeout_s=TIMEOUT_S, stage="load").typed(RoofsAnswer)
    if server.closed:
        raise StudyInterruptedError("the measurement of the roofs was stopped", run="the same command, to begin anew")
    if result.raised is not None:
        raise result.raised
    if result.value is None:
        raise WorkError(
            f"the roofs of {device.name} could not be measured", found=str(result.failure), run="autotune doctor"
        )
    answer = result.value
    roofs = Roofs(
        device_class=device.device_class, copy_gb_s=answer.copy, matrix_tflops=answer.matrix, launch_us=answer.launch,
        toolchain=toolchain.current(device, LIBRARIES), created=created, absent=answer.absent,
    )  # fmt: skip
    for roof in roofs.all.values():
        for pid, sentence in foreign_processes(roof.measurement.conditions, device).items():
            server.notices.say(sentence, of=pid)
    return roofs
