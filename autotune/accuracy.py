"""The accuracy gate: a candidate's answers compared with the reference, on inputs that nothing else uses.

The error of a floating output is relative to the variation of the reference between inputs, not to its size: an
untrained network answers two inputs almost equally, so an error relative to the size would pass a candidate that
ignores its input. Everything is computed in float64 on the CPU.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autotune.errors import ReferenceRefusedError, RequestError
from autotune.records.objective import Metric, Objective
from autotune.records.trial import Failure, FailureKind

if TYPE_CHECKING:
    import torch

    Answers = Sequence[tuple[torch.Tensor, ...]]
    NamedAnswers = list[dict[str, torch.Tensor]]
    MetricFunction = Callable[[NamedAnswers, NamedAnswers], object]

LEAST_INPUTS = 8
"""The reference needs at least this many distinct inputs."""

LEAST_SPREAD = 1e-4
"""Least ‖ref − mean(ref)‖ / ‖ref‖ of every input: rounding alone makes deep fp32 networks differ by about 1e-6 of ‖ref‖
between correct implementations, so below this line a limit of 2e-2 of the signal is no longer far above the noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyResult:
    """The gate's decision on a candidate, with every figure that was computed.

    ``figures`` holds (output, signal error) of floating and (output, share of equal elements) of other outputs, in the
    order of the outputs; ``signal_error`` is the worst of the former, ``metrics`` the user's own. All are empty if
    the answers could not be compared: wrong number, shape or dtype, or a value that is not finite.
    """

    accepted: bool
    signal_error: float | None = None
    figures: tuple[tuple[str, float], ...] = ()
    metrics: tuple[tuple[str, float], ...] = ()
    failure: Failure | None = None

    def __post_init__(self) -> None:
        if self.accepted == (self.failure is not None):
            raise ValueError("an accuracy result either accepts or has a failure")


def signal_errors(outputs: "Answers", references: "Answers") -> tuple[float, ...]:
    """Return one figure an output: the signal error if it is floating, else the share of equal elements.

    The signal error is ‖y − ref‖ / ‖ref − mean(ref)‖, mean over the inputs; it is NaN or infinite if an answer is,
    or if the reference does not vary. Both arguments have one tuple of tensors an input, of matching shapes.
    """
    return tuple(
        _signal_error([answer[i] for answer in outputs], [reference[i] for reference in references])
        if _is_floating(references[0][i])
        else _agreement([answer[i] for answer in outputs], [reference[i] for reference in references])
        for i in range(len(references[0]))
    )


def spreads(references: "Answers") -> tuple[float | None, ...]:
    """Return ‖ref − mean(ref)‖ / ‖ref‖ of every floating output, the least over the inputs; ``None`` for the others."""
    spread: list[float | None] = []
    for i, first in enumerate(references[0]):
        if not _is_floating(first):
            spread.append(None)
            continue
        stack = _stack([reference[i] for reference in references])
        signal, size = (stack - stack.mean(dim=0)).norm(dim=1), stack.norm(dim=1)
        spread.append(float((signal / size.clamp_min(1e-300)).min()))
    return tuple(spread)


def check_reference(references: "Answers", names: Sequence[str], treatments: Mapping[str, str] | None = None) -> None:
    """Raise ReferenceRefusedError, naming the output, if the reference cannot distinguish wrong candidates from right.

    It needs eight inputs or more, finite values, and floating outputs that all vary between inputs: the error of a
    constant output (such as a table of positions) has no signal to be relative to. Outputs of integers may be constant,
    because they are compared element by element, but at least one output must vary. ``treatments`` describe for each
    input how the held-out inputs were made from a user's tensors; the refusal repeats it.
    """
    treated = "".join(f"; input {name}: {how}" for name, how in (treatments or {}).items())
    more = "; in Python, several sets of inputs that differ: autotune.optimize(model, [inputs, …])" if treated else ""
    if len(references) < LEAST_INPUTS:
        raise ReferenceRefusedError(
            "the reference is judged on held-out inputs",
            found=f"{len(references)} inputs",
            expected=f"at least {LEAST_INPUTS} distinct ones",
        )
    for i, name in enumerate(names):
        if not all(_is_finite(reference[i]) for reference in references):
            raise ReferenceRefusedError(
                f"the reference (the model in fp32) is not finite in output {name}",
                found="NaN or infinity for at least one held-out input",
                expected="finite values for every input of the study",
                run="the model on the study's inputs; check its weights and the ranges of the inputs",
            )
    for name, spread in zip(names, spreads(references), strict=True):
        if spread is not None and not spread >= LEAST_SPREAD:
            raise ReferenceRefusedError(
                f"output {name} of the reference does not vary between inputs, so no candidate can be judged by it",
                found=f"‖ref − mean(ref)‖ / ‖ref‖ = {spread:.1e} for at least one of {len(references)} held-out inputs"
                + treated,
                expected=f"at least {LEAST_SPREAD:.0e} for each input, so no output that is constant",
                run=f"the study with a model that leaves this output out, or with inputs that it depends on{more}",
            )
    if not any(_varies([reference[i] for reference in references]) for i in range(len(names))):
        raise ReferenceRefusedError(
            "no output of the reference varies between inputs, so a candidate that ignores its input would pass",
            found=f"equal values of {', '.join(names)} for all {len(references)} held-out inputs{treated}",
            expected="at least one output that depends on the input",
            run=f"the study with inputs that differ{more}",
        )


def check_metrics(
    references: "Answers", names: Sequence[str], metrics: "Sequence[tuple[Metric, MetricFunction]]"
) -> None:
    """Raise RequestError, naming the metric, if one refuses the model's own answers: then no candidate can pass."""
    measured = _measure(metrics, references, references, names)
    for (metric, function), (name, value) in zip(metrics, measured, strict=True):
        if _metric_excesses([(name, value)], [(metric, function)]):
            raise RequestError(
                f"metric {metric.function} refuses the model's own answers, so no candidate can pass it",
                found=f"{value:.4g} for the model's fp32 answers compared with themselves",
                expected=str(metric),
                run="the study with another bound, or with a metric that accepts the reference",
            )


def judge(
    outputs: "Answers",
    references: "Answers",
    names: Sequence[str],
    objective: Objective,
    metrics: "Sequence[tuple[Metric, MetricFunction]]" = (),
) -> AccuracyResult:
    """Compare a candidate's answers with references that :func:`check_reference` has accepted.

    Refused are, in this order: another number, shape or dtype of outputs; NaN or infinity; an output beyond its limit;
    a metric beyond its bound. ``metrics`` pairs each metric of the objective with its resolved function.
    """
    if len(outputs) != len(references) or any(len(reference) != len(names) for reference in references):
        raise ValueError(f"{len(outputs)} answers, {len(references)} references, {len(names)} names do not match")
    mismatch = _mismatch(outputs, references, names)
    if mismatch:
        return _refused("inaccurate", mismatch)
    for i, name in enumerate(names):
        bad = sum(not _is_finite(answer[i]) for answer in outputs)
        if bad:
            return _refused("non_finite", f"output {name} has NaN or infinity for {bad} of {len(outputs)} inputs")
    figures = tuple(zip(names, signal_errors(outputs, references), strict=True))
    floating = [_is_floating(tensor) for tensor in references[0]]
    errors = [figure for (_, figure), is_floating in zip(figures, floating, strict=True) if is_floating]
    worst = max(errors, key=_badness, default=None)
    measured = _measure(metrics, outputs, references, names)
    excesses = _excesses(figures, floating, objective) + _metric_excesses(measured, metrics)
    failure = None
    if excesses:
        detail = "; ".join(sentence for _, _, sentence in sorted(excesses, key=lambda entry: -entry[0]))
        figure = max(excesses, key=lambda entry: entry[0])[1]
        failure = Failure(stage="check", kind="inaccurate", detail=detail, figure=figure)
    return AccuracyResult(
        accepted=failure is None, signal_error=worst, figures=figures, metrics=measured, failure=failure
    )


def far_off(answers: "Answers", references: "Answers", names: Sequence[str], objective: Objective, slack: float) -> str:
    """Name the outputs that are ``slack`` times further from the references than an objective allows; empty if none.

    Unlike :func:`judge` it takes any number of inputs. If the references of an output do not vary between them, its
    error is relative to its size.
    """
    if mismatch := _mismatch(answers, references, names):
        return mismatch
    sentences = []
    for at, name in enumerate(names):
        here, there = [answer[at] for answer in answers], [reference[at] for reference in references]
        if not there[0].numel():
            continue
        if not _is_floating(there[0]):
            share = _agreement(here, there)
            if share < 0.5:
                sentences.append(f"output {name} agrees in {share:.1%} of its elements")
            continue
        got, want = _stack(here), _stack(there)
        if not bool((got.isfinite() == want.isfinite()).all()):
            sentences.append(f"output {name} is not finite in the same places")
            continue
        got, want = got.nan_to_num(0.0, 0.0, 0.0), want.nan_to_num(0.0, 0.0, 0.0)
        signal, size = float((want - want.mean(dim=0)).norm()), float(want.norm())
        scale = signal if signal >= LEAST_SPREAD * size and signal > 0 else size
        error = float((got - want).norm()) / max(scale, 1e-30)
        if not error <= slack * objective.limit_of(name):
            limit = objective.limit_of(name)
            sentences.append(f"output {name} is off by {error:.3g} of its signal, and the plan's limit is {limit:g}")
    return "; ".join(sentences)


def signal_scales(references: "Answers") -> tuple[float, ...]:
    """Return for each output of the first reference the size to which an error of its is relative.

    That is ‖ref − mean(ref)‖, or ‖ref‖ if the references do not vary; 0 for outputs that are not floating.
    """
    scales = []
    for at, first in enumerate(references[0]):
        if not _is_floating(first) or not first.numel():
            scales.append(0.0)
            continue
        stack = _stack([reference[at] for reference in references]).nan_to_num(0.0, 0.0, 0.0)
        signal, size = float((stack[0] - stack.mean(dim=0)).norm()), float(stack[0].norm())
        scales.append(signal if signal >= LEAST_SPREAD * size and signal > 0 else size)
    return tuple(scales)


def judge_one(
    answer: "Sequence[torch.Tensor]",
    reference: "Sequence[torch.Tensor]",
    scales: Sequence[float],
    names: Sequence[str],
    objective: Objective,
    slack: float,
) -> AccuracyResult:
    """Compare one answer with the model's own by its :func:`signal_scales`, within ``slack`` times the limits.

    The limits are for the average over several inputs, which a single one may exceed. Of other than floating outputs at
    least half of the elements must agree, as in :func:`far_off`.
    """
    if mismatch := _mismatch([tuple(answer)], [tuple(reference)], names):
        return _refused("inaccurate", mismatch)
    figures: list[tuple[str, float]] = []
    errors: list[float] = []
    sentences: list[str] = []
    for name, got, want, scale in zip(names, answer, reference, scales, strict=True):
        if not want.numel():
            continue
        if not _is_floating(want):
            share = _agreement([got], [want])
            figures.append((name, share))
            sentences += [f"output {name} agrees in {share:.1%} of its elements"] if share < 0.5 else []
            continue
        mine, theirs = _stack([got]), _stack([want])
        if not bool((mine.isfinite() == theirs.isfinite()).all()):
            return _refused("non_finite", f"output {name} is not finite in the same places")
        error = float((mine - theirs).nan_to_num(0.0, 0.0, 0.0).norm()) / max(scale, 1e-30)
        figures.append((name, error))
        errors.append(error)
        limit = slack * objective.limit_of(name)
        sentences += [] if error <= limit else [f"output {name} is off by {error:.3g} of its signal, limit {limit:g}"]
    worst = max(errors, default=None)
    failure = Failure(stage="check", kind="inaccurate", detail="; ".join(sentences)) if sentences else None
    return AccuracyResult(accepted=not sentences, signal_error=worst, figures=tuple(figures), failure=failure)


def _refused(kind: FailureKind, detail: str) -> AccuracyResult:
    return AccuracyResult(accepted=False, failure=Failure(stage="check", kind=kind, detail=detail))


def _mismatch(outputs: "Answers", references: "Answers", names: Sequence[str]) -> str:
    """Describe the first difference in number, shape or dtype of the answers from the reference's; empty if none."""
    for number, (answer, reference) in enumerate(zip(outputs, references, strict=True), start=1):
        if len(answer) != len(reference):
            return f"input {number} is answered by {len(answer)} outputs, the reference has {len(reference)}"
        for name, tensor, expected in zip(names, answer, reference, strict=True):
            if tensor.shape != expected.shape or tensor.dtype != expected.dtype:
                return f"output {name} is {_kind_of(tensor)}, the reference {_kind_of(expected)}, at input {number}"
    return ""


def _excesses(
    figures: Sequence[tuple[str, float]], floating: Sequence[bool], objective: Objective
) -> list[tuple[float, float, str]]:
    """Return (badness, figure, sentence) for each output beyond its limit; NaN is beyond every limit."""
    excesses = []
    for (name, figure), is_floating in zip(figures, floating, strict=True):
        if is_floating:
            limit = objective.limit_of(name)
            if not figure <= limit:
                sentence = f"output {name} has a signal error of {figure:.3g}, the limit is {limit:g}"
                excesses.append((_badness(figure / limit), figure, sentence))
        elif not figure >= objective.integer_agreement:
            least = objective.integer_agreement
            excesses.append(
                (1.0, figure, f"output {name} agrees in {figure:.4%} of its elements, the least is {least:.4%}")
            )
    return excesses


def _measure(
    metrics: "Sequence[tuple[Metric, MetricFunction]]",
    outputs: "Answers",
    references: "Answers",
    names: Sequence[str],
) -> tuple[tuple[str, float], ...]:
    """Call the user's metrics; RequestError if one does not return a number."""
    if not metrics:
        return ()
    named = [dict(zip(names, answer, strict=True)) for answer in outputs]
    named_references = [dict(zip(names, reference, strict=True)) for reference in references]
    measured = []
    for metric, function in metrics:
        value = function(named, named_references)
        try:
            measured.append((metric.function, float(value)))  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise RequestError(
                f"metric {metric.function} was called on outputs and references",
                found=f"{type(value).__name__} {value!r}",
                expected="one number",
            ) from error
    return tuple(measured)


def _metric_excesses(
    measured: Sequence[tuple[str, float]], metrics: "Sequence[tuple[Metric, MetricFunction]]"
) -> list[tuple[float, float, str]]:
    """Return (badness, figure, sentence) for each metric beyond its bound; NaN is beyond every bound."""
    excesses = []
    for (name, value), (metric, _) in zip(measured, metrics, strict=True):
        if metric.at_most is not None and not value <= metric.at_most:
            excesses.append((1.0, value, f"metric {name} is {value:.4g}, at most {metric.at_most:g} is allowed"))
        if metric.at_least is not None and not value >= metric.at_least:
            excesses.append((1.0, value, f"metric {name} is {value:.4g}, at least {metric.at_least:g} is required"))
    return excesses


def _signal_error(answers: "Sequence[torch.Tensor]", references: "Sequence[torch.Tensor]") -> float:
    reference = _stack(references)
    if reference.shape[1] == 0:
        return 0.0
    error = (_stack(answers) - reference).norm(dim=1)
    return float((error / (reference - reference.mean(dim=0)).norm(dim=1)).mean())


def _agreement(answers: "Sequence[torch.Tensor]", references: "Sequence[torch.Tensor]") -> float:
    equal = sum(int((a.cpu() == r.cpu()).sum()) for a, r in zip(answers, references, strict=True))
    total = sum(reference.numel() for reference in references)
    return equal / total if total else 1.0


def _stack(tensors: "Sequence[torch.Tensor]") -> "torch.Tensor":
    """Return one float64 row for each input, a complex number as two."""
    import torch

    parts = [torch.view_as_real(t) if t.is_complex() else t for t in (tensor.detach() for tensor in tensors)]
    return torch.stack([part.to("cpu", torch.float64).flatten() for part in parts])


def _is_floating(tensor: "torch.Tensor") -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _is_finite(tensor: "torch.Tensor") -> bool:
    import torch

    return not _is_floating(tensor) or bool(torch.isfinite(tensor.detach()).all())


def _varies(tensors: "Sequence[torch.Tensor]") -> bool:
    return any(not bool((tensor == tensors[0]).all()) for tensor in tensors[1:])


def _kind_of(tensor: "torch.Tensor") -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {list(tensor.shape)}"


def _badness(figure: float) -> float:
    """Return a figure to sort by; NaN is the worst."""
    return math.inf if math.isnan(figure) else figure
