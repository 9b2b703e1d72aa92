"""The search space of our own engine."""

from collections.abc import Mapping

from autotune.records.configuration import Configuration, Scalar
from autotune.records.device import Device
from autotune.records.search_space import Constraint, Parameter, SearchSpace
from autotune.records.workload import Workload
from autotune.search_spaces.precision import precisions, threads

FUSIONS = (
    "conv_bn", "space_to_depth", "qkv", "attention", "attention_kernel", "norm", "gemm_epilogue", "depthwise",
    "conv_act", "back_to_back_gemm", "pooling", "pointwise",
)  # fmt: skip
"""Every fusion, in the order of execution."""

ON_CPU = ("conv_bn", "qkv", "attention")
"""Fusions that reduce the work, not only the number of kernels: we have no kernels for a CPU."""

LATER = ("back_to_back_gemm",)
"""Fusions whose kernels are faster for few shapes only: off unless the search turns them on."""

WITH_GEMMS = ("gemm_epilogue", "conv_act")
"""Fusions whose operators have tuned kernels."""

PROGRAMMATIC_FROM = (9, 0)
"""The compute capability from which a launch may begin before the launch before it has ended."""


def native_space(device: Device, workload: Workload | None) -> SearchSpace:
    """Return the switches of the fusions that match in the graph, and the choice of kernels.

    ``kernels`` torch computes GEMMs by torch's own calls, ``tuned`` uses the best known kernel for each of them, ours
    or a library's. With ``programmatic_launch`` our kernels begin, and fetch their weights, while the kernel before
    still runs (CUDA's programmatic dependent launch); ``kernels`` overlapped then prefers kernels of ours that run well
    beside their neighbours, even if they are up to a tenth slower alone.
    """
    on_gpu = device.kind == "cuda"
    convolves = workload is None or "convolution" in workload.features
    parameters = [Parameter(name="precision", choices=precisions(device, "native"))]
    parameters += [
        Parameter(name=name, choices=(False, True) if name in LATER else (True, False))
        for name in (FUSIONS if on_gpu else ON_CPU)
        if workload is None or workload.matches(f"native.{name}")
    ]
    if convolves:
        parameters.append(Parameter(name="channels_last", choices=(True, False)))
    if on_gpu:
        programmatic = device.capability is not None and device.capability >= PROGRAMMATIC_FROM
        if any(parameter.name in WITH_GEMMS for parameter in parameters):
            choices = ("torch", "tuned", "overlapped") if programmatic else ("torch", "tuned")
            parameters.append(Parameter(name="kernels", choices=choices))
        if programmatic:
            parameters.append(Parameter(name="programmatic_launch", choices=(True, False)))
        parameters.append(Parameter(name="cuda_graph", choices=(True, False)))
        if convolves:
            parameters.append(Parameter(name="cudnn_benchmark", choices=(True, False)))
    else:
        parameters.append(Parameter(name="threads", choices=threads(device)))
    return SearchSpace(
        backend="native",
        parameters=tuple(parameters),
        constraints=_CONSTRAINTS if any(parameter.name == "kernels" for parameter in parameters) else (),
        defaults=_defaults(device, tuple(parameters)),
        hints=_hints(device, tuple(parameters)),
    )


def fusions(configuration: Configuration) -> tuple[str, ...]:
    """Return the fusions that a configuration turns on, in their order."""
    return tuple(name for name in FUSIONS if configuration.get(name, False))


def _has_gemms(values: Mapping[str, Scalar]) -> bool:
    return values["kernels"] == "torch" or any(values.get(name, False) for name in WITH_GEMMS)


def _overlaps(values: Mapping[str, Scalar]) -> bool:
    return values["kernels"] != "overlapped" or bool(values["programmatic_launch"])


_CONSTRAINTS = (
    Constraint(reason=f"kernels are tuned for what {' or '.join(WITH_GEMMS)} made", holds=_has_gemms),
    Constraint(reason="kernels overlap where programmatic_launch lets them", holds=_overlaps),
)


def _defaults(device: Device, parameters: tuple[Parameter, ...]) -> tuple[Configuration, ...]:
    """Return every fusion with torch's own GEMMs: in fp32, and on a GPU in fp16 too."""
    first: dict[str, Scalar] = {parameter.name: parameter.choices[0] for parameter in parameters}
    variants = [first]
    if device.kind == "cuda" and "fp16" in precisions(device, "native"):
        variants.append({**first, "precision": "fp16"})
    return tuple(Configuration.of("native", values) for values in variants)


def _hints(device: Device, parameters: tuple[Parameter, ...]) -> tuple[Configuration, ...]:
    """Return the tuned kernels in fp16, of either choice; on a CPU its reduced precisions."""
    first: dict[str, Scalar] = {parameter.name: parameter.choices[0] for parameter in parameters}
    reduced = [name for name in precisions(device, "native") if name in ("bf16", "fp16")]
    if device.kind == "cpu":
        return tuple(Configuration.of("native", {**first, "precision": name}) for name in reduced)
    if "kernels" not in first or "fp16" not in reduced:
        return ()
    kernels = next(parameter for parameter in parameters if parameter.name == "kernels").choices[1:]
    return tuple(Configuration.of("native", {**first, "precision": "fp16", "kernels": each}) for each in kernels)
