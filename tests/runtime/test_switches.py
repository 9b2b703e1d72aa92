import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.records.configuration import Configuration
from autotune.runtime.switches import Switches
from autotune.testing.runner_conformance import global_state, restore_global_state

SWITCHES = st.builds(
    Switches,
    tf32=st.sampled_from(["default", "on", "off"]),
    threads=st.sampled_from([None, 1, 2, 3]),
    cudnn_benchmark=st.booleans(),
)
MATMUL = st.sampled_from(["highest", "high", "medium"])
USERS = st.tuples(st.sampled_from([1, 2, 3]), MATMUL, st.booleans(), st.booleans())


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = global_state()
    yield
    restore_global_state(before)


def set_users(threads: int, matmul: str, cudnn: bool, benchmark: bool) -> None:
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = cudnn
    torch.backends.cudnn.benchmark = benchmark


def tf32() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def assert_set(switches: Switches) -> None:
    assert tf32() == {"default": (False, True), "on": (True, True), "off": (False, False)}[switches.tf32]
    assert torch.backends.cudnn.benchmark is switches.cudnn_benchmark
    if switches.threads:
        assert torch.get_num_threads() == switches.threads
    assert not torch.is_autocast_enabled("cuda" if switches.threads is None else "cpu")


@settings(deadline=None, max_examples=50)
@given(switches=SWITCHES, users=USERS, autocast=st.booleans())
def test_apply_leaves_nothing_of_the_candidate_before(
    switches: Switches, users: tuple[int, str, bool, bool], autocast: bool
) -> None:
    set_users(*users)
    torch.set_autocast_enabled("cpu", autocast)
    torch.use_deterministic_algorithms(True)
    switches.apply()
    assert_set(switches)
    assert not torch.are_deterministic_algorithms_enabled()


@settings(deadline=None, max_examples=50)
@given(outer=SWITCHES, inner=SWITCHES, users=USERS, autocast=st.booleans())
def test_overlay_sets_and_restores_even_nested_and_after_an_error(
    outer: Switches, inner: Switches, users: tuple[int, str, bool, bool], autocast: bool
) -> None:
    set_users(*users)
    mine = global_state()
    with torch.autocast("cpu", enabled=autocast):
        with pytest.raises(KeyError), outer.overlay():
            assert_set(outer)
            with inner.overlay():
                assert_set(inner)
            assert_set(outer)
            raise KeyError
        assert global_state() == mine
        assert torch.is_autocast_enabled("cpu") is autocast


def test_overlay_can_be_entered_again() -> None:
    overlay = Switches(tf32="on", threads=1).overlay()
    mine = global_state()
    for _ in range(2):
        with overlay, overlay:
            assert tf32() == (True, True)
    assert global_state() == mine


def test_what_the_user_set_through_the_newer_interface_survives() -> None:
    matmul: Any = torch.backends.cuda.matmul
    matmul.fp32_precision = "tf32"
    with pytest.raises(RuntimeError):
        torch.get_float32_matmul_precision()
    with Switches(tf32="off").overlay():
        assert tf32() == (False, False)
    assert matmul.fp32_precision == "tf32"


def test_calls_that_want_other_switches_wait_for_each_other() -> None:
    """Whoever is inside finds its own switches, and the user's are back when the last has left."""
    set_users(2, "highest", True, False)
    mine = global_state()
    wrong: list[Any] = []
    start = threading.Barrier(4)

    def call(switches: Switches) -> None:
        overlay = switches.overlay()
        start.wait()
        for _ in range(200):
            with overlay:
                wanted = {"on": (True, True), "off": (False, False)}[switches.tf32]
                if tf32() != wanted:
                    wrong.append((switches, tf32()))

    both = [Switches(tf32="on", threads=1), Switches(tf32="off", threads=2)]
    callers = [threading.Thread(target=call, args=(switches,)) for switches in both * 2]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
    assert not wrong
    assert not any(caller.is_alive() for caller in callers)
    assert global_state() == mine


def test_calls_that_want_the_same_overlap() -> None:
    inside = threading.Barrier(2, timeout=30)

    def call() -> None:
        with Switches(tf32="on").overlay():
            inside.wait()

    other = threading.Thread(target=call)
    other.start()
    call()
    other.join()
    assert not inside.broken


@pytest.mark.parametrize(
    ("values", "switches"),
    [
        ({"precision": "fp32", "threads": 4}, Switches(tf32="off", threads=4)),
        ({"precision": "tf32"}, Switches(tf32="on")),
        ({"precision": "default"}, Switches(tf32="default")),
        ({"precision": "fp16", "cudnn_benchmark": True}, Switches(tf32="off", cudnn_benchmark=True)),
        ({}, Switches()),
    ],
)
def test_switches_of_a_configuration(values: dict[str, Any], switches: Switches) -> None:
    assert Switches.of(Configuration.of("eager", values)) == switches


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="maybe"):
        Switches(tf32="maybe")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1"):
        Switches(threads=0)
