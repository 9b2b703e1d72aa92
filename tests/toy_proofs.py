"""Backends for the proofs of ``autotune doctor``: two that have to meet, some that go wrong; by entry points."""

import os
import time
from pathlib import Path

from autotune.backend import Availability
from autotune.records.configuration import Configuration
from autotune.records.search_space import Parameter, SearchSpace
from autotune.testing import MisbehavingBackend

FOLDER = "TOY_PROOFS"
"""The variable that names the folder in which backends meet."""
PATIENCE_S = 30.0


class ToyBackend(MisbehavingBackend):
    """The misbehaving backend with one fault, under a name of its own."""

    def __init__(self, name, fault="none", *, works=True):
        self.name, self._fault, self._works = name, fault, works

    def probe(self, device):
        return Availability(works=self._works, reason="" if self._works else "it is not here", remedy="get it")

    def space(self, device, workload, *, has_factory):
        parameters = (Parameter(name="fault", choices=(self._fault,)), Parameter(name="precision", choices=("fp32",)))
        default = Configuration.of(self.name, {"fault": self._fault, "precision": "fp32"})
        return SearchSpace(backend=self.name, parameters=parameters, defaults=(default,))


class MeetingBackend(ToyBackend):
    """Its build ends once that of the other has begun."""

    def __init__(self, name, other):
        super().__init__(name)
        self._other = other

    def build(self, model, configuration, device, folder):
        meeting = Path(os.environ[FOLDER])
        (meeting / self.name).touch()
        deadline = time.monotonic() + PATIENCE_S
        while not (meeting / self._other).exists():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self._other} did not come")
            time.sleep(0.02)
        super().build(model, configuration, device, folder)


class HangingBackend(ToyBackend):
    """Its build says that it has begun, and never ends."""

    def build(self, model, configuration, device, folder):
        (Path(os.environ[FOLDER]) / self.name).write_text(str(os.getpid()))
        time.sleep(600)


LEFT, RIGHT = MeetingBackend("left", "right"), MeetingBackend("right", "left")
CRASHING, WRONG = ToyBackend("crashing", "segfault"), ToyBackend("wrong", "constant")
ABSENT, HANGING = ToyBackend("absent", works=False), HangingBackend("hanging")
