"""What eager execution lets us vary."""

from collections.abc import Mapping

from autotune.configuration import Configuration, Scalar
from autotune.device import Device
from autotune.search_spaces.precision import precisions, threads
from autotune.space import Constraint, Parameter, SearchSpace
from autotune.workload import Workload

PLAIN: Mapping[str, Scalar] = {"channels_last": False, "cuda_graph": False, "cudnn_benchmark": False}
"""The knobs of a model as its user runs it today."""


def eager_space(device: Device, workload: Workload | None, *, has_factory: bool) -> SearchSpace:
    """Describe the user's own module or its captured graph, run op by op.

    On a GPU the precision ``default`` is the framework's own TF32 flags. It belongs to the baseline alone: whoever
    varies a knob says what is computed in.
    """
    on_gpu = device.kind == "cuda"
    convolves = workload is None or "convolution" in workload.features
    found = precisions(device, "eager")
    parameters = [
        Parameter(name="precision", choices=("default", *found) if on_gpu else found),
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
        constraints=_constraints(has_factory) if on_gpu else (),
        defaults=_defaults(device, tuple(parameters)),
        hints=_hints(device, tuple(parameters)),
    )


def is_baseline(configuration: Configuration, *, has_factory: bool) -> bool:
    """Whether it is the model as its user runs it today: fp32 under the framework's default flags, no knob turned.

    That is the user's own module where a factory can make it, else its captured graph.
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


def _constraints(has_factory: bool) -> tuple[Constraint, ...]:
    def default_is_plain(values: Mapping[str, Scalar]) -> bool:
        return values["precision"] != "default" or _is_plain(values)

    def one_form_in_a_graph(values: Mapping[str, Scalar]) -> bool:
        return not values["cuda_graph"] or values["form"] == "module"

    default = Constraint(reason="precision default belongs to the baseline alone", holds=default_is_plain)
    if not has_factory:
        return (default,)
    form = Constraint(
        reason="under a CUDA graph module and graph launch the same kernels: module stands for both",
        holds=one_form_in_a_graph,
    )
    return (default, form)


def _defaults(device: Device, parameters: tuple[Parameter, ...]) -> tuple[Configuration, ...]:
    """List the baseline (on a CPU at each thread count); on a GPU also plain fp16, and fp16 in a CUDA graph."""
    first = {parameter.name: parameter.choices[0] for parameter in parameters}
    if device.kind == "cpu":
        return tuple(Configuration.of("eager", {**first, "threads": count}) for count in threads(device))
    variants: list[dict[str, Scalar]] = [first]
    if "fp16" in precisions(device, "eager"):
        graph = {"cuda_graph": True, **({"channels_last": True} if "channels_last" in first else {})}
        variants += [{**first, "precision": "fp16"}, {**first, "precision": "fp16", **graph}]
    return tuple(Configuration.of("eager", values) for values in variants)


def _hints(device: Device, parameters: tuple[Parameter, ...]) -> tuple[Configuration, ...]:
    """List the fastest default with cuDNN's search among its algorithms."""
    return tuple(
        Configuration.of("eager", {**dict(default.values), "cudnn_benchmark": True})
        for default in _defaults(device, parameters)
        if default.get("cuda_graph", False) and "cudnn_benchmark" in dict(default.values)
    )
