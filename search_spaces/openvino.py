"""The search space of OpenVINO on a CPU.

Properties: https://docs.openvino.ai/2026/openvino-workflow/running-inference/inference-devices-and-modes/cpu-device.html
With one stream and a fixed number of threads the performance hints decide nothing, so they are no parameter.
"""

from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.search_space import Parameter, SearchSpace
from autotune.records.workload import Workload
from autotune.search_spaces.precision import precisions, threads

NAME = "openvino"


def space(device: Device, workload: Workload | None) -> SearchSpace:
    """Return the legal configurations; the defaults are every precision with all cores.

    By default OpenVINO uses the narrowest precision that the processor supports, so that is among them.
    """
    supported = precisions(device, NAME)
    counts = threads(device) or (1,)
    parameters = (
        Parameter(name="precision", choices=supported),
        Parameter(name="threads", choices=counts),
        Parameter(name="pinning", choices=(True, False)),
    )
    defaults = tuple(
        Configuration.of(NAME, {"precision": precision, "threads": counts[0], "pinning": True})
        for precision in supported
    )
    return SearchSpace(backend=NAME, parameters=parameters, defaults=defaults)
