"""The search space of eager execution."""

from collections.abc import Mapping

from autotune.records.configuration import Configuration, Scalar
from autotune.records.device import Device
from autotune.records.search_space import Constraint, Parameter, SearchSpace
from autotune.records.workload import Workload
from autotune.search_spaces.precision import precisions, threads

PLAIN: Mapping[str, Scalar] = {"channels_last": False, "cuda_graph": False, "cudnn_benchmark": False}
"""The parameters of a model as its user runs it today."""


def eager_space(device: Device, workload: Workload | None, *, has_factory: bool) -> SearchSpace:
    """Return the space of the user's own module or its captured graph, run operator by operator.

    On a GPU the precision ``default`` is the framework's own TF32 flags. Only the baseline has it: a configuration that
    changes a parameter names its precision.
    """
    on_gpu = device.kind == "cuda"
    convolves = workload is None or "convolution" in workload.features
    supported = precisions(device, "eager")
    parameters = [
        Parameter(name="precision", choices=("default", *supported) if on_gpu else supported),
        Parameter(name="form", choices=("module", "graph") if has_factory else ("graph",)),
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
        backend="eager",
        parameters=tuple(parameters),
        constraints=(_DEFAULT_IS_THE_BASELINE,) if on_gpu else (),
        defaults=_defaults(device, tuple(parameters)),
        hints=_hints(device, tuple(parameters)),
    )


def is_baseline(configuration: Configuration, *, has_factory: bool) -> bool:
    """Return true for the model as its user runs it today: fp32, the framework's default flags, no parameter changed.

    This is the user's own module if a factory can make it, else its captured graph.
    """
    values = dict(configuration.values)
    untouched = "fp32" if "threads" in values else "default"
    return (
        configuration.backend == "eager"
        and values["precision"] == untouched
        and values["form"] == ("module" if has_factory else "graph")
        and _is_plain(values)
    )


def _is_plain(values: Mapping[str, Scalar]) -> bool:
    return all(values.get(name, value) == value for name, value in PLAIN.items())


def _default_is_plain(values: Mapping[str, Scalar]) -> bool:
    return values["precision"] != "default" or _is_plain(values)


_DEFAULT_IS_THE_BASELINE = Constraint(reason="precision default belongs to the baseline alone", holds=_default_is_plain)


def _defaults(device: Device, parameters: tuple[Parameter, ...]) -> tuple[Configuration, ...]:
    """Return the baseline (on a CPU at each thread count); on a GPU also plain fp16, and fp16 in a CUDA graph."""
    first = {parameter.name: parameter.choices[0] for parameter in parameters}
    if device.kind == "cpu":
        return tuple(Configuration.of("eager", {**first, "threads": count}) for count in threads(device))
    variants: list[dict[str, Scalar]] = [first]
    if "fp16" in precisions(device, "eager"):
        graph = {"cuda_graph": True, **({"channels_last": True} if "channels_last" in first else {})}
        variants += [{**first, "precision": "fp16"}, {**first, "precision": "fp16", **graph}]
    return tuple(Configuration.of("eager", values) for values in variants)


def _hints(device: Device, parameters: tuple[Parameter, ...]) -> tuple[Configuration, ...]:
    """Return the default in a CUDA graph with one more parameter changed: cuDNN's search, and the captured graph.

    A module may use slower kernels during capture than the captured graph does (see autotune.model.masks).
    """
    choices = {parameter.name: parameter.choices for parameter in parameters}
    turned: list[dict[str, Scalar]] = []
    if "cudnn_benchmark" in choices:
        turned.append({"cudnn_benchmark": True})
    if "module" in choices["form"]:
        turned.append({"form": "graph"})
    return tuple(
        Configuration.of("eager", {**dict(default.values), **knob})
        for default in _defaults(device, parameters)
        if default.get("cuda_graph", False)
        for knob in turned
    )
