"""What OpenVINO lets us vary on a CPU.

Properties: https://docs.openvino.ai/2026/openvino-workflow/running-inference/inference-devices-and-modes/cpu-device.html
With one stream and a thread count of our own, the performance hints have nothing left to decide, so they are no
parameter.
"""

from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.search_space import Parameter, SearchSpace
from autotune.records.workload import Workload
from autotune.search_spaces.precision import precisions, threads

NAME = "openvino"


def space(device: Device, workload: Workload | None) -> SearchSpace:
    """List the legal configurations; the defaults are every precision at all cores.

    Off the shelf OpenVINO takes the narrowest precision that the processor computes in, so that one is a default too.
    """
    found = precisions(device, NAME)
    counts = threads(device) or (1,)
    parameters = (
        Parameter(name="precision", choices=found),
        Parameter(name="threads", choices=counts),
        Parameter(name="pinning", choices=(True, False)),
    )
    defaults = tuple(
        Configuration.of(NAME, {"precision": precision, "threads": counts[0], "pinning": True}) for precision in found
    )
    return SearchSpace(backend=NAME, parameters=parameters, defaults=defaults)
