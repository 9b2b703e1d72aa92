"""The search space of ONNX Runtime.

Session options and CUDA provider options: https://onnxruntime.ai/docs/performance/tune-performance and
https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
"""

from autotune.records.configuration import Configuration, Scalar
from autotune.records.device import Device
from autotune.records.search_space import Constraint, Parameter, SearchSpace
from autotune.records.workload import Workload
from autotune.search_spaces.precision import precisions, threads

NAME = "onnxruntime"


def space(device: Device, workload: Workload | None) -> SearchSpace:
    """Return the legal configurations; the defaults are a session without options, and on a GPU fp16 as well."""
    features = set(workload.features) if workload is not None else {"attention", "convolution"}
    parameters = [
        Parameter(name="precision", choices=precisions(device, NAME)),
        Parameter(name="graph_optimization", choices=("all", "extended", "basic", "disabled")),
    ]
    if "attention" in features:
        parameters.append(Parameter(name="transformer_fusions", choices=(False, True)))
    parameters += _on_cpu(device) if device.kind == "cpu" else _on_cuda(features)
    first = {parameter.name: parameter.choices[0] for parameter in parameters}
    return SearchSpace(
        backend=NAME,
        parameters=tuple(parameters),
        constraints=_constraints(features, device),
        defaults=_defaults(device, first),
        hints=_hints(device, first),
    )


def is_served(configuration: Configuration, device: Device) -> bool:
    """Return true if a session without options runs what a trial times.

    On a CPU the optimised graph is in the file. On a GPU a session optimises at load, by default at every level, and
    the CUDA provider uses TF32.
    """
    values = dict(configuration.values)
    if device.kind == "cpu":
        return values["threads"] == device.cores and values["spinning"] is True
    full = "tf32" if "tf32" in precisions(device, NAME) else "fp32"
    usual: dict[str, Scalar] = {
        "graph_optimization": "all", "cuda_graph": False, "conv_algo_search": "EXHAUSTIVE", "nhwc": False,
    }  # fmt: skip
    is_usual = all(values.get(name, value) == value for name, value in usual.items())
    return values["precision"] in (full, "fp16") and is_usual


def is_plain_export(configuration: Configuration, device: Device) -> bool:
    """Return true for the served graph as it is exported, in full precision, with the usual optimisation."""
    values = dict(configuration.values)
    return (
        is_served(configuration, device)
        and values["precision"] != "fp16"
        and values["graph_optimization"] == "all"
        and not values.get("transformer_fusions", False)
    )


def _on_cpu(device: Device) -> list[Parameter]:
    return [
        Parameter(name="threads", choices=threads(device)),
        Parameter(name="spinning", choices=(True, False)),
    ]


def _on_cuda(features: set[str]) -> list[Parameter]:
    parameters = [Parameter(name="cuda_graph", choices=(False, True))]
    if "convolution" in features:
        parameters.append(Parameter(name="conv_algo_search", choices=("EXHAUSTIVE", "HEURISTIC", "DEFAULT")))
        parameters.append(Parameter(name="nhwc", choices=(False, True)))
    return parameters


def _constraints(features: set[str], device: Device) -> tuple[Constraint, ...]:
    constraints = []
    if "attention" in features:
        constraints.append(
            Constraint(
                reason="the fused operators are of the extended level, so fusing them needs that level or all",
                holds=lambda v: not v["transformer_fusions"] or v["graph_optimization"] in ("all", "extended"),
            )
        )
    if device.kind == "cpu":
        constraints.append(
            Constraint(
                reason="spinning is how threads wait for one another, so one thread has nothing to choose",
                holds=lambda v: v["threads"] != 1 or v["spinning"] is True,
            )
        )
    return tuple(constraints)


def _defaults(device: Device, first: dict[str, Scalar]) -> tuple[Configuration, ...]:
    if device.kind == "cpu":
        return (Configuration.of(NAME, first),)
    supported = precisions(device, NAME)
    # The CUDA provider uses TF32 by default if the GPU has it.
    points: list[dict[str, Scalar]] = [{"precision": "tf32" if "tf32" in supported else "fp32"}]
    if "fp16" in supported:
        points += [{"precision": "fp16"}, {"precision": "fp16", "cuda_graph": True}]
    return tuple(Configuration.of(NAME, {**first, **point}) for point in points)


def _hints(device: Device, first: dict[str, Scalar]) -> tuple[Configuration, ...]:
    """Return settings that are often faster than the defaults on a GPU: fp16 in a CUDA graph with one more option.

    ResNet-50 at batch 1 on an H200: 0.64 ms with NHWC, 0.81 without (cuDNN transposes around most convolutions).
    """
    if device.kind == "cpu" or "fp16" not in precisions(device, NAME):
        return ()
    graph: dict[str, Scalar] = {**first, "precision": "fp16", "cuda_graph": True}
    return tuple(
        Configuration.of(NAME, {**graph, knob: True}) for knob in ("nhwc", "transformer_fusions") if knob in graph
    )
