"""Steps that look at a captured graph as a backend sees it: what it finds there, and which kernels it would need."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autotune import registry
from autotune.configuration import Configuration
from autotune.device import Device
from autotune.execute.channel import Channel


def features(request: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """What each of the named backends finds in the captured graph, with counts, as ``backend.feature``."""
    from autotune.model.source import CapturedModel

    channel.send({"stage": "build", "at": time.monotonic()})
    device, model = Device.from_dict(request["device"]), CapturedModel(Path(request["folder"]))
    found = {}
    for name in request["backends"]:
        counts: Mapping[str, int] = registry.backend(name).features(model, device)  # type: ignore[attr-defined]
        found.update({f"{name}.{feature}": count for feature, count in counts.items()})
    return {"features": found}


def problems(request: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """The kernel problems of the graph that a configuration builds, each with how often it comes in a call."""
    from autotune.model.source import CapturedModel

    channel.send({"stage": "build", "at": time.monotonic()})
    configuration = Configuration.from_dict(request["configuration"])
    device, model = Device.from_dict(request["device"]), CapturedModel(Path(request["folder"]))
    found = registry.backend(configuration.backend).problems(model, configuration, device)  # type: ignore[attr-defined]
    return {"problems": [{"problem": problem.as_dict(), "count": count} for problem, count in found.items()]}
