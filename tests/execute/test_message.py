import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.execute.channel import NotOurs
from autotune.execute.message import checked

ME = "a" * 32
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    [
        "stage",
        "error",
        "rounds",
        "result",
        "loaded",
        "ready",
        "turn",
        "utilisation",
        "kernel",
        "at",
        "kind",
        "detail",
        "x",
    ]
)
MEASUREMENT = {"samples_ms": [[1.0, 2.0]]}
FAILURE = {"stage": "check", "kind": "inaccurate", "detail": "wrong"}
BLOCK = {"samples_ms": [1.0]}
KERNEL = {"candidate": "d", "error": 1e-7, "made": {"registers": 32}, "samples_us": [3.5], "conditions": {"l2": "cold"}}


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("build", {"stage": "load", "at": 1.5}),
        ("build", {"stage": "wait", "at": 1.5}),
        ("build", {"stage": "wait", "at": 1.5, "holder": "waiting for cpu: process 7 of bob", "pids": [7]}),
        ("build", {"error": {"kind": "error", "detail": "no"}}),
        ("build", {"error": {"kind": "error", "detail": "no", "raised": ["ModelError", "a", "b", "c", "d"]}}),
        ("build", {"result": {"build_s": 1.0, "kernels": ""}}),
        ("measure", {"loaded": True}),
        ("measure", {"result": {"signal_error": 0.1, "measurement": MEASUREMENT, "pruned": False, "score": None}}),
        ("measure", {"result": {"signal_error": 0.1, "failure": FAILURE}}),
        ("finals", {"turn": "eager"}),
        ("finals", {"rounds": [{"eager": BLOCK}]}),
        ("unknown", {"result": {"anything": 1}}),
        ("time_kernels", {"kernel": KERNEL}),
        ("time_kernels", {"kernel": {"candidate": "d", "failure": FAILURE}}),
        ("time_kernels", {"result": {"timed": 2}}),
        ("compile_kernels", {"result": {"made": []}}),
    ],
)
def test_what_steps_say_comes_through(step, message):
    assert checked({**message, "identity": ME}, ME, step) == message


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("build", {}),
        ("build", {"unknown": 1}),
        ("build", {"stage": "lunch", "at": 1.0}),
        ("build", {"stage": "load", "at": float("nan")}),
        ("build", {"stage": "load", "at": True}),
        ("build", {"stage": ["load"], "at": 1.0}),
        ("build", {"stage": "load"}),
        ("build", {"stage": "load", "at": 1.0, "holder": "somebody", "pids": [7]}),
        ("build", {"stage": "wait", "at": 1.0, "holder": "somebody"}),
        ("build", {"stage": "wait", "at": 1.0, "holder": "some\x1b[2Jbody", "pids": [7]}),
        ("build", {"stage": "wait", "at": 1.0, "holder": "x" * 5000, "pids": [7]}),
        ("build", {"stage": "wait", "at": 1.0, "holder": 7, "pids": [7]}),
        ("build", {"stage": "wait", "at": 1.0, "holder": "somebody", "pids": 7}),
        ("build", {"stage": "wait", "at": 1.0, "holder": "somebody", "pids": [True]}),
        ("build", {"stage": "wait", "at": 1.0, "holder": "somebody", "pids": [0]}),
        ("build", {"stage": "load", "at": 1.0, "result": {"build_s": 1.0, "kernels": ""}}),
        ("build", {"error": {"kind": "boredom", "detail": "no"}}),
        ("build", {"error": {"kind": "error", "detail": "no", "raised": ["ModelError"]}}),
        ("build", {"error": "no"}),
        ("build", {"result": {}}),
        ("build", {"result": {"build_s": "1", "kernels": ""}}),
        ("build", {"result": {"build_s": 1.0}}),
        ("build", {"result": {"build_s": 1.0, "kernels": None}}),
        ("build", {"result": [1.0]}),
        ("measure", {"result": {"measurement": {"samples_ms": [[float("nan")]]}}}),
        ("measure", {"result": {"measurement": {"samples_ms": [[-1.0]]}}}),
        ("measure", {"result": {"failure": {"stage": "check", "kind": "boredom", "detail": ""}}}),
        ("finals", {"rounds": [{"eager": {"surprise": 1}}]}),
        ("finals", {"rounds": 3}),
        ("finals", {"turn": 3}),
        ("time_kernels", {"kernel": {}}),
        ("time_kernels", {"kernel": {**KERNEL, "candidate": 1}}),
        ("time_kernels", {"kernel": {**KERNEL, "failure": FAILURE}}),
        ("time_kernels", {"kernel": {**KERNEL, "samples_us": []}}),
        ("time_kernels", {"kernel": {**KERNEL, "samples_us": [0.0]}}),
        ("time_kernels", {"kernel": {**KERNEL, "samples_us": ["1"]}}),
        ("time_kernels", {"kernel": {**KERNEL, "error": float("nan")}}),
        ("time_kernels", {"kernel": {**KERNEL, "made": {"registers": "32"}}}),
        ("time_kernels", {"kernel": {**KERNEL, "conditions": []}}),
        ("time_kernels", {"kernel": {**KERNEL, "surprise": 1}}),
        (
            "time_kernels",
            {"kernel": {"candidate": "d", "failure": {"stage": "check", "kind": "boredom", "detail": ""}}},
        ),
        ("compile_kernels", {"result": {}}),
    ],
)
def test_what_no_step_says_is_refused(step, message):
    with pytest.raises(NotOurs):
        checked({**message, "identity": ME}, ME, step)


@pytest.mark.parametrize("identity", [None, "", "b" * 32, ME[:-1], 1, [ME]])
def test_a_message_in_another_name_is_refused(identity):
    with pytest.raises(NotOurs, match="another step"):
        checked({"ready": True, "identity": identity}, ME, "finals")


@given(message=st.dictionaries(NAMES, JSON, max_size=3), step=st.sampled_from(["build", "measure", "finals"]))
def test_whatever_is_said_is_passed_on_or_refused(message, step):
    with contextlib.suppress(NotOurs):
        assert checked({**message, "identity": ME}, ME, step) == message
