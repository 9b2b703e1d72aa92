"""The command ``autotune serve-check``."""

from typing import TYPE_CHECKING

import typer

from autotune.cli.output import BundleFolder, Json, On, RequireSignature, print_json

if TYPE_CHECKING:
    from autotune.deploy.serve_check import ServeCheck


def check(
    bundle: BundleFolder,
    on: On = None,
    require_signature: RequireSignature = None,
    json: Json = False,
) -> None:
    """Start a bundle cold in a fresh process: first answer, steady latency, memory, and accuracy.

    The answer to the bundle's example is compared with the model's own, and the latency with that of the manifest.
    Exit code 1 if the answer is outside the limit, or if the bundle does not run here.
    """
    from autotune.deploy.serve_check import serve_check

    checked = serve_check(bundle, device=on, require_signature=require_signature)
    if json:
        print_json(checked.as_dict())
    else:
        typer.echo("\n".join(f"{name:<14}{text}" for name, text in _lines(checked)))
    if not checked.accurate:
        raise typer.Exit(1)


def _lines(checked: "ServeCheck") -> list[tuple[str, str]]:
    from autotune.deploy.model import SLACK
    from autotune.deploy.portability import TEXTS
    from autotune.deploy.serve_check import FIRST_ANSWER_S

    memory = f"{checked.peak_bytes / 1e6:.0f} MB resident at most"
    if checked.device_bytes is not None:
        memory += f", {checked.device_bytes / 1e6:.0f} MB on the GPU"
    under = f", measured under: {', '.join(checked.flags)}" if checked.flags else ""
    errors = ", ".join(f"{name} {figure:.2g}" for name, figure in checked.errors.items())
    limit = f"limit {checked.limit:g}, for one input {SLACK:g} times that"
    return [
        ("plan", f"{checked.plan[:8]} ({checked.configuration})"),
        ("portability", TEXTS[checked.verdict]),
        ("signature", checked.signature),
        ("import torch", f"{checked.import_s:.2f} s"),
        ("first answer", f"{checked.first_answer_s:.2f} s after that (aim {FIRST_ANSWER_S:g} s)"),
        ("latency", f"{_timed(checked.latency_ms, checked.interval_ms)}{under}"),
        ("manifest", _timed(checked.stored_ms, checked.stored_interval_ms)),
        ("memory", memory),
        ("accuracy", f"{errors} ({limit})" if checked.accurate else f"refused: {checked.failure}"),
    ]


def _timed(latency_ms: float, interval_ms: tuple[float, float]) -> str:
    return f"{latency_ms:.4g} [{interval_ms[0]:.4g} – {interval_ms[1]:.4g}] ms (median)"
