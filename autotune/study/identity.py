"""The parts of a study's identity that have to be looked up or computed."""

from collections.abc import Mapping
from dataclasses import asdict, replace

from autotune import registry
from autotune.execute.executor import SCREENING_LIMIT_S, Executor
from autotune.execute.input_sets import HELD_OUT_SETS, TIMING_SETS
from autotune.measure.block import protocol_of
from autotune.records.canonical import digest
from autotune.records.device import Device, Toolchain
from autotune.records.identity import FINGERPRINT, Conditions
from autotune.records.objective import Objective
from autotune.study.request import StudyRequest
from autotune.study.space import baseline_backends, participants


def conditions(request: StudyRequest, executor: Executor, toolchain: Toolchain) -> Conditions:
    """Return the conditions that decide a study's answers and timings; the executor has the prepared model."""
    names = {
        entry
        for name in {*participants(request), *baseline_backends(request)}
        for entry in registry.backend(name).toolchain
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


def with_metric_code(objective: Objective, executor: Executor) -> tuple[Objective, list[Mapping[str, object]]]:
    """Return the objective with the digest of each metric's code, and a record of the files that each metric reads."""
    if not objective.metrics:
        return objective, []
    codes = executor.metrics([metric.function for metric in objective.metrics])
    metrics = [replace(metric, code=code.code) for metric, code in zip(objective.metrics, codes, strict=True)]
    return replace(objective, metrics=tuple(metrics)), [code.read for code in codes]


def request_digest(request: StudyRequest) -> str:
    """Return the digest of a request without trials and budget, and of the backends that this host offers.

    It is used before anything is captured: a finished study with the same digest, whose files are unchanged, is the
    study of this request.
    """
    backends = [(name, registry.backend(name).probe(request.device).works) for name in registry.names()]
    metrics = tuple(replace(metric, code="") for metric in request.objective.metrics)
    objective = replace(request.objective, metrics=metrics)
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
