"""What makes a request the study that it is: the parts of its identity that have to be looked up or computed."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from autotune import registry
from autotune.execute.executor import SCREENING_LIMIT_S, Executor
from autotune.execute.input_sets import HELD_OUT_SETS, TIMING_SETS
from autotune.measure.block import protocol_of
from autotune.records.canonical import digest
from autotune.records.device import Device, Toolchain
from autotune.records.identity import FINGERPRINT, Conditions
from autotune.records.objective import Objective
from autotune.study.request import StudyRequest
from autotune.study.space import participants


def conditions(request: StudyRequest, executor: Executor, toolchain: Toolchain) -> Conditions:
    """Return what the answers and timings of a study depend on; its model is prepared in the bench's folder."""
    names = {
        entry for name in {*participants(request), *registry.baselines()} for entry in registry.backend(name).toolchain
    }
    return Conditions(
        form=executor.form(),
        inputs=executor.inputs(),
        toolchain=toolchain.only(tuple(names)).digest,
        measuring=measuring(request.device),
        tune_kernels=request.tune_kernels,
    )


def measuring(device: Device) -> str:
    """Return the digest of the rules by which candidates are judged and timed on a device."""
    rules = protocol_of("screening", device.kind, TIMING_SETS)
    return digest({**rules, "held_out": HELD_OUT_SETS, "limit_s": SCREENING_LIMIT_S})


def with_metric_code(objective: Objective, executor: Executor) -> tuple[Objective, list[Mapping[str, Any]]]:
    """Return an objective whose metrics say what their code is, with a record of what each of them reads."""
    if not objective.metrics:
        return objective, []
    found = executor.metrics([metric.function for metric in objective.metrics])
    metrics = [replace(each, code=one.code) for each, one in zip(objective.metrics, found, strict=True)]
    return replace(objective, metrics=tuple(metrics)), [one.read for one in found]


def request_digest(request: StudyRequest) -> str:
    """Return the digest of what a request asks, trials and budget aside, with what this host offers.

    Used before anything is captured: a finished study with the same one, whose files are unchanged, is this study.
    """
    backends = [(name, registry.backend(name).probe(request.device).works) for name in registry.names()]
    objective = replace(request.objective, metrics=tuple(replace(m, code="") for m in request.objective.metrics))
    return digest(
        {
            "fingerprint": FINGERPRINT,
            "factory": request.factory,
            "inputs": [asdict(spec) for spec in request.inputs],
            "device": request.device.device_class,
            "objective": objective.as_dict(),
            "serve_as": request.serve_as,
            "backends": request.backends,
            "precisions": request.precisions,
            "seed": request.seed,
            "tune_kernels": request.tune_kernels,
            "measuring": measuring(request.device),
            "offered": backends,
        }
    )
