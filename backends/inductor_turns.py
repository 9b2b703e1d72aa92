"""The turns of an inductor build on a GPU: torch's functions that compute there, each within a turn of its own."""

import contextlib
import functools
import importlib
import inspect
import logging
from collections.abc import Callable, Iterator

from autotune.runtime.turn import Turn, shared_turn

TRY_LAUNCHES = ("torch._inductor.codegen.wrapper", "PythonWrapperCodegen", "generate_and_run_autotune_block")
BENCHMARK = ("torch._inductor.runtime.benchmarking", "benchmarker", "benchmark_gpu")
WAIT_FOR_TRITON = ("torch._inductor.async_compile", "AsyncCompile", "wait")

Place = tuple[str, str, str]
"""A function of torch: its module, the class or object there that has it, and its name."""

Function = Callable[..., object]

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def in_turns() -> Iterator[None]:
    """Let a compilation by inductor in this context compute on the device only within turns, and restore torch's names.

    A turn is held while launch sizes of Triton kernels are tried (one turn for all kernels of a graph, once they are
    compiled), and for every other timing, such as those of padded products. If this torch lacks one of these
    functions, or would try launch sizes elsewhere, there is one turn for the whole compilation. Without turns, as in a
    build that has the device as a whole, nothing is done.

    The rest runs beside timings. On an H200 (torch 2.11, BERT-base and ResNet-50 in fp16) the weights are copied to the
    device in 6 to 27 ms and back for the package in 15 ms, which uses no SM; the graph is rewritten with copies of
    under 1 ms; and constants are folded in 0.2 to 1.5 ms of the device's time.
    """
    turn = shared_turn()
    if turn is None:
        yield
        return
    owners = {place: _owner(place) for place in (TRY_LAUNCHES, BENCHMARK, WAIT_FOR_TRITON)}
    missing = [".".join(place) for place, owner in owners.items() if owner is None]
    if missing or not _tries_launches_at_once():
        _log.info("builds hold the device as a whole: %s", ", ".join(missing) or "kernels are tuned by a run")
        with turn():
            yield
        return
    with contextlib.ExitStack() as replaced:
        replaced.enter_context(_replaced(owners[BENCHMARK], BENCHMARK[2], functools.partial(_within, turn)))
        by_turn = functools.partial(_once_compiled, turn, owners[WAIT_FOR_TRITON])
        replaced.enter_context(_replaced(owners[TRY_LAUNCHES], TRY_LAUNCHES[2], by_turn))
        yield


def _owner(place: Place) -> object | None:
    """Return the object that has a function, or ``None`` if this torch does not have the function."""
    module, owner, name = place
    try:
        found: object = getattr(importlib.import_module(module), owner, None)
    except ImportError:
        return None
    return found if callable(getattr(found, name, None)) else None


def _tries_launches_at_once() -> bool:
    """Return false if torch was told to tune kernels by running the whole model instead."""
    import torch._inductor.config as config

    return getattr(config.triton, "autotune_at_compile_time", False) is not False


def _within(turn: Turn, original: Function) -> Function:
    """Return the function within a turn."""

    @functools.wraps(original)
    def function(*arguments: object, **keywords: object) -> object:
        with turn():
            return original(*arguments, **keywords)

    return function


def _once_compiled(turn: Turn, compiler: object, original: Function) -> Function:
    """Return the function that tries launches, within a turn that begins once it has waited for Triton's compiler.

    The turn is for the whole function if that does not seem to wait for the compiler.
    """
    if not _waits_for_triton(original):
        return _within(turn, original)

    @functools.wraps(original)
    def function(*arguments: object, **keywords: object) -> object:
        with contextlib.ExitStack() as held:

            def then_hold(wait: Function) -> Function:
                @functools.wraps(wait)
                def waited(*arguments: object, **keywords: object) -> object:
                    answer = wait(*arguments, **keywords)
                    held.enter_context(turn())
                    return answer

                return waited

            with _replaced(compiler, WAIT_FOR_TRITON[2], then_hold):
                return original(*arguments, **keywords)

    return function


def _waits_for_triton(function: Function) -> bool:
    try:
        return f"async_compile.{WAIT_FOR_TRITON[2]}(" in inspect.getsource(function)
    except OSError:  # torch was installed without its source
        return False


@contextlib.contextmanager
def _replaced(owner: object, name: str, by: Callable[[Function], Function]) -> Iterator[None]:
    """Replace a method of a class or of an object while the context lasts."""
    own = name in vars(owner)
    original: Function = getattr(owner, name)
    setattr(owner, name, by(original))
    try:
        yield
    finally:
        if own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)
