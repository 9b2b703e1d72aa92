"""The search space of TorchScript."""

from autotune.records.configuration import Configuration, Scalar
from autotune.records.device import Device
from autotune.records.search_space import Parameter, SearchSpace
from autotune.records.workload import Workload
from autotune.search_spaces.precision import precisions, threads


def torchscript_space(device: Device, workload: Workload | None) -> SearchSpace:
    """Return the space of traced and frozen graphs; ``optimize`` is ``torch.jit.optimize_for_inference``."""
    on_gpu = device.kind == "cuda"
    convolves = workload is None or "convolution" in workload.features
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
    return SearchSpace(
        backend="torchscript",
        parameters=tuple(parameters),
        defaults=_defaults(device, tuple(parameters)),
        hints=_hints(device, tuple(parameters)),
    )


def _defaults(device: Device, parameters: tuple[Parameter, ...]) -> tuple[Configuration, ...]:
    """Return traced, frozen and optimised in fp32 (on a CPU with all its cores); on a GPU also in fp16."""
    first: dict[str, Scalar] = {parameter.name: parameter.choices[0] for parameter in parameters}
    variants = [first]
    if device.kind == "cuda" and "fp16" in precisions(device, "torchscript"):
        variants.append({**first, "precision": "fp16"})
    return tuple(Configuration.of("torchscript", values) for values in variants)


def _hints(device: Device, parameters: tuple[Parameter, ...]) -> tuple[Configuration, ...]:
    """Return the usual manual settings on a GPU: fp16 in a CUDA graph, images in channels-last memory."""
    if device.kind == "cpu" or "fp16" not in precisions(device, "torchscript"):
        return ()
    first: dict[str, Scalar] = {parameter.name: parameter.choices[0] for parameter in parameters}
    layout: dict[str, Scalar] = {"channels_last": True} if "channels_last" in first else {}
    return (Configuration.of("torchscript", {**first, "precision": "fp16", "cuda_graph": True, **layout}),)
