"""The command that deploys a plan has what the plan's key has, and nothing that is a default."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.records.device import Device
from autotune.records.objective import Metric, Objective
from autotune.report.deploying import deploy_by_name_command, deploy_command
from autotune.study.file import read_constraints
from tests.database import records

CPU = Device(kind="cpu", name="AMD EPYC", uuid="cpu")
GPU = Device(kind="cuda", name="NVIDIA H200", uuid="GPU-1", index=3, capability=(9, 0), power_limit_w=700)
STRICT = Objective(
    name="throughput", signal_error=0.01, signal_error_by_output=(("logits", 0.005),), integer_agreement=1.0,
    metrics=(Metric(function="/m.py:top1", at_least=0.99), Metric(function="pkg.mod:worst", at_most=0.5)),
)  # fmt: skip


def options(command):
    """The arguments of ``autotune.load`` beside the model and its inputs."""
    code = "\n".join(command.splitlines()[1:-1])
    (call,) = [
        node for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "autotune.load"
    ]  # fmt: skip
    return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}


def test_defaults_are_left_out(tmp_path):
    command = deploy_command(tmp_path / "study.yaml", records.plan(objective=Objective()), CPU, None)
    assert options(command) == {} and command.isascii()
    assert command.startswith("python - <<'END'\n") and command.endswith("\nEND")
    assert f"autotune.from_study({str(tmp_path / 'study.yaml')!r}, batch=1)" in command


LOOSE = Objective(name="memory", signal_error=0.03, integer_agreement=0.9)


@pytest.mark.parametrize("objective", [STRICT, LOOSE, Objective(signal_error=0.03)])
def test_the_constraints_make_the_same_objective_again(objective):
    plan = replace(records.plan(objective=objective), serve_as="onnx")
    given = options(deploy_command(Path("dossier é/study.yaml"), plan, GPU, "db/autotune.db"))
    assert (given["device"], given["serve_as"]) == ("cuda:3", "onnx")
    assert given["db"] == str(Path("db/autotune.db").resolve())
    name = given.get("objective", "latency_p50")
    assert read_constraints(name, given.get("constraints", {}), Path.cwd()) == objective


@pytest.mark.parametrize(
    ("given", "shown"),
    [("postgresql://h/d", "postgresql://h/d"), ("postgresql://me:secret@h/d", "postgresql://me@h/d")],
)
def test_a_url_stays_a_url_without_its_password(given, shown):
    assert options(deploy_command(Path("s.yaml"), records.plan(), CPU, given))["db"] == shown


def test_a_plan_by_its_name_needs_no_model():
    plan = records.plan(objective=Objective())
    command = deploy_by_name_command(plan, CPU, None)
    assert f"fast = autotune.load({plan.name!a}, batch={plan.batch})" in command and "from_study" not in command
    assert "device='cuda:" in deploy_by_name_command(plan, GPU, None)
