"""The native backend keeps the promises of every backend; tests/backends/native has what is its own."""

from autotune.backends.native.backend import BACKEND
from autotune.testing.backend_conformance import BackendConformance, RunnerConformance


class TestNativeBackend(BackendConformance):
    backend = BACKEND
    module = "autotune.backends.native.backend"


class TestNativeRunner(RunnerConformance):
    """One build, with both kinds of layers in it."""

    backend = BACKEND
    module = "autotune.backends.native.backend"
    toys = ("mixed",)
