"""One step in the process that is its own: the confinement, the run, and the report of whatever it raised."""

import contextlib
import faulthandler
import importlib
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from autotune.execute.causes import cause_of
from autotune.execute.channel import IDENTITY, Channel
from autotune.execute.limits import Limits, end_with_parent, prefer_to_kill_this


def confine(keeper: int, output: int, limits: Limits, folder: Path) -> None:
    """Confine this process, so that it may do anything: its own process group, output, limits, and an end."""
    os.setsid()
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the coordinator decides what Ctrl-C means
    end_with_parent(keeper, signal.SIGKILL)
    prefer_to_kill_this()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    for fd in (nothing, output):
        if fd > 2:
            os.close(fd)
    limits.apply(folder)


def run(fd: int, steps: str) -> NoReturn:
    """Run the step that a channel asks for, and leave by ``_exit``, whatever libraries would do at exit."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        # A log is UTF-8 in every locale.
        log = os.fdopen(number, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
        setattr(sys, name, log)
    faulthandler.enable()  # a crash leaves its stack in the log
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # and so does a step that is out of time
    channel = Channel.from_fd(fd)
    code = 0
    try:
        order = channel.receive()
        if order is not None:
            channel.sign, channel.purpose = {IDENTITY: order[IDENTITY]}, order["purpose"]
            table = importlib.import_module(steps).STEPS
            channel.send({"result": table[order["step"]](order["request"], channel)})
    except BaseException as error:  # the worker's border: every exception is reported and recorded
        code = 1
        traceback.print_exc()
        with contextlib.suppress(Exception):
            channel.send({"error": explain(error)})
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def explain(error: BaseException) -> dict[str, object]:
    """Return an exception as plain data: its kind, a sentence, and the parts of the project's own errors."""
    from autotune.errors import AutotuneError

    text = f"{type(error).__name__}: {error}" if not isinstance(error, AutotuneError) else str(error)
    explained: dict[str, object] = {"kind": "error", "detail": text[:4000]}
    if (cause := cause_of(error)) is not None:
        explained = {"kind": cause.kind, "detail": f"{cause.words}: {text[:4000]}"}
    if isinstance(error, AutotuneError):
        explained["raised"] = [type(error).__name__, error.asked, error.found, error.expected, error.run]
    return explained
