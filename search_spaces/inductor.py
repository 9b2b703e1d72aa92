"""The search space of AOTInductor."""

from collections.abc import Mapping

from autotune.records.configuration import Configuration, Scalar
from autotune.records.device import Device
from autotune.records.search_space import Constraint, Parameter, SearchSpace
from autotune.records.workload import Workload
from autotune.search_spaces.precision import precisions, threads

MAX_AUTOTUNE_COST = 4.0
"""ResNet-50 on an H200 built in 238 to 255 s with max-autotune, about four times as long as without."""


def inductor_space(device: Device, workload: Workload | None) -> SearchSpace:
    """Return the space of compiled packages; every first choice is inductor's own default.

    ``max_autotune`` times kernels while it builds: minutes for a large model.
    """
    on_gpu = device.kind == "cuda"
    convolves = workload is None or "convolution" in workload.features
    parameters = [
        Parameter(name="precision", choices=precisions(device, "inductor")),
        Parameter(name="freezing", choices=(False, True)),
        Parameter(name="epilogue_fusion", choices=(True, False)),
        Parameter(name="pattern_matcher", choices=(True, False)),
        Parameter(name="max_autotune", choices=(False, True), build_cost=(1.0, MAX_AUTOTUNE_COST)),
    ]
    if convolves:
        parameters.append(Parameter(name="layout_optimization", choices=(True, False)))
    if on_gpu:
        parameters.append(Parameter(name="cuda_graph", choices=(False, True)))
        if convolves:
            parameters.append(Parameter(name="cudnn_benchmark", choices=(False, True)))
    else:
        parameters.append(Parameter(name="threads", choices=threads(device)))
    return SearchSpace(
        backend="inductor",
        parameters=tuple(parameters),
        constraints=() if on_gpu else (_TEMPLATES_NEED_CONSTANTS,),
        defaults=_defaults(device, tuple(parameters)),
        hints=_frozen(device, tuple(parameters)),
    )


PLAIN: Mapping[str, Scalar] = {
    "precision": "fp32", "freezing": False, "epilogue_fusion": True, "pattern_matcher": True, "max_autotune": False,
    "layout_optimization": True,
}  # fmt: skip
"""The parameters of a package as inductor makes it by default."""


def is_served(configuration: Configuration, device: Device) -> bool:
    """Return true if the package alone says what a trial times: no flag of the process, and all cores of a CPU.

    A package in fp32 is timed with TF32 off, as it was compiled. Its convolutions by cuDNN follow the flag of the
    process, which torch leaves on.
    """
    values = dict(configuration.values)
    outside = bool(values.get("cuda_graph", False)) or bool(values.get("cudnn_benchmark", False))
    return values["precision"] != "tf32" and not outside and values.get("threads", device.cores) == device.cores


def is_plain_export(configuration: Configuration, device: Device) -> bool:
    """Return true for the served package with inductor's own defaults."""
    values = dict(configuration.values)
    return is_served(configuration, device) and all(values.get(name, value) == value for name, value in PLAIN.items())


def _has_constants(values: Mapping[str, Scalar]) -> bool:
    return not values["max_autotune"] or bool(values["freezing"])


_TEMPLATES_NEED_CONSTANTS = Constraint(
    reason="on a CPU max_autotune chooses among templates that pack constant weights, so it needs freezing",
    holds=_has_constants,
)


def _defaults(device: Device, parameters: tuple[Parameter, ...]) -> tuple[Configuration, ...]:
    """Return the default; on a GPU also the usual manual settings: frozen, fp16, in a CUDA graph."""
    first: dict[str, Scalar] = {parameter.name: parameter.choices[0] for parameter in parameters}
    variants = [first]
    if device.kind == "cuda" and "fp16" in precisions(device, "inductor"):
        variants.append({**first, "precision": "fp16", "freezing": True, "cuda_graph": True})
    return tuple(Configuration.of("inductor", values) for values in variants)


def _frozen(device: Device, parameters: tuple[Parameter, ...]) -> tuple[Configuration, ...]:
    """Return the one setting that nearly always helps, on a GPU with the CUDA graph."""
    first: dict[str, Scalar] = {parameter.name: parameter.choices[0] for parameter in parameters}
    graph: dict[str, Scalar] = {"cuda_graph": True} if device.kind == "cuda" else {}
    return (Configuration.of("inductor", {**first, "freezing": True, **graph}),)
