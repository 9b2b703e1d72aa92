"""The search space of TorchScript."""

from collections.abc import Mapping

from autotune.records.configuration import Configuration, Scalar
from autotune.records.device import Device
from autotune.records.search_space import Constraint, Parameter, SearchSpace
from autotune.records.workload import Workload
from autotune.search_spaces.precision import precisions, threads

OUTSIDE: Mapping[str, Scalar] = {"optimize": False, "cuda_graph": False, "cudnn_benchmark": False}
"""The parameters that are set in the process that loads a file, at the values that a server leaves them at."""


def torchscript_space(device: Device, workload: Workload | None) -> SearchSpace:
    """Return the space of traced and frozen graphs; ``optimize`` is ``torch.jit.optimize_for_inference``.

    On a CPU ``packed_weights`` packs the weights of convolutions as the file is loaded.
    """
    on_gpu = device.kind == "cuda"
    convolves = workload is None or "convolution" in workload.features
    constraints: tuple[Constraint, ...] = ()
    parameters = [
        Parameter(name="precision", choices=precisions(device, "torchscript")),
        Parameter(name="optimize", choices=(True, False)),
    ]
    if convolves:
        parameters.append(Parameter(name="channels_last", choices=(False, True)))
    if on_gpu:
        parameters.append(Parameter(name="cuda_graph", choices=(False, True)))
        if convolves:
            parameters.append(Parameter(name="cudnn_benchmark", choices=(False, True)))
    else:
        parameters.append(Parameter(name="threads", choices=threads(device)))
        if convolves:
            parameters.append(Parameter(name="packed_weights", choices=(False, True)))
            constraints = _PACKED
    return SearchSpace(
        backend="torchscript",
        parameters=tuple(parameters),
        constraints=constraints,
        defaults=_defaults(device, tuple(parameters)),
        hints=_hints(device, tuple(parameters)),
    )


def is_served(configuration: Configuration, device: Device) -> bool:
    """Return true if the file alone says what a trial times: no flag of the process, and all cores of a CPU.

    A file in fp32 is timed with TF32 off. On a GPU its convolutions follow the flag of the process, which torch leaves
    on.
    """
    values = dict(configuration.values)
    return (
        values["precision"] != "tf32" and _is_untouched(values) and values.get("threads", device.cores) == device.cores
    )


def is_plain_export(configuration: Configuration, device: Device) -> bool:
    """Return true for the served file in full precision whose layouts are the model's own."""
    values = dict(configuration.values)
    has_own_layouts = not values.get("channels_last", False) and not values.get("packed_weights", False)
    return is_served(configuration, device) and values["precision"] == "fp32" and has_own_layouts


def _is_untouched(values: Mapping[str, Scalar]) -> bool:
    return all(values.get(name, value) == value for name, value in OUTSIDE.items())


_PACKED = (
    Constraint(
        reason="packed weights are for a graph in fp32 or bf16",
        holds=lambda values: not values["packed_weights"] or values["precision"] in ("fp32", "bf16"),
    ),
    Constraint(
        reason="packed convolutions are optimised already, and have images in channels-last memory anyway",
        holds=lambda values: not values["packed_weights"] or not (values["optimize"] or values["channels_last"]),
    ),
)


def _defaults(device: Device, parameters: tuple[Parameter, ...]) -> tuple[Configuration, ...]:
    """Return traced, frozen and optimised in fp32 (on a CPU with all its cores); on a GPU also in fp16."""
    first: dict[str, Scalar] = {parameter.name: parameter.choices[0] for parameter in parameters}
    variants = [first]
    if device.kind == "cuda" and "fp16" in precisions(device, "torchscript"):
        variants.append({**first, "precision": "fp16"})
    return tuple(Configuration.of("torchscript", values) for values in variants)


def _hints(device: Device, parameters: tuple[Parameter, ...]) -> tuple[Configuration, ...]:
    """Return fp16 in a CUDA graph with images in channels-last memory on a GPU, packed weights in fp32 on a CPU."""
    first: dict[str, Scalar] = {parameter.name: parameter.choices[0] for parameter in parameters}
    if device.kind == "cpu":
        packed: dict[str, Scalar] = {**first, "optimize": False, "packed_weights": True}
        return (Configuration.of("torchscript", packed),) if "packed_weights" in first else ()
    if "fp16" not in precisions(device, "torchscript"):
        return ()
    layout: dict[str, Scalar] = {"channels_last": True} if "channels_last" in first else {}
    return (Configuration.of("torchscript", {**first, "precision": "fp16", "cuda_graph": True, **layout}),)
