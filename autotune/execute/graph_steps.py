"""Steps that look at a captured graph as a backend sees it: what it finds there, and which kernels it would need."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autotune import registry
from autotune.execute.channel import Channel
from autotune.execute.stages import building
from autotune.records.configuration import Configuration
from autotune.records.device import Device


def features(request: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """What each of the named backends finds in the captured graph, with counts, as ``backend.feature``."""
    from autotune.model.source import CapturedModel

    device, found = Device.from_dict(request["device"]), {}
    with building(channel, device):
        model = CapturedModel(Path(request["folder"]))
        for name, backend in registry.finding_features(request["backends"]).items():
            counts = backend.graph_features(model, device)
            found.update({f"{name}.{feature}": count for feature, count in counts.items()})
    return {"features": found}


def problems(request: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """The kernel problems of the graph that a configuration builds, each with how often it comes in a call."""
    from autotune.model.source import CapturedModel

    configuration, device = Configuration.from_dict(request["configuration"]), Device.from_dict(request["device"])
    backend = registry.kernel_tuner(configuration.backend)
    with building(channel, device):
        found = backend.kernel_problems(CapturedModel(Path(request["folder"])), configuration, device)
    return {"problems": [{"problem": problem.as_dict(), "count": count} for problem, count in found.items()]}
