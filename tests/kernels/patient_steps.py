"""The steps of tuned kernels, in a worker that keeps its turn on the device long for the next order."""

from autotune.kernels import steps

steps.NEXT_S = 20.0
steps.TURN_S = 1.0

STEPS = steps.STEPS
