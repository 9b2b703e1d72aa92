from pathlib import Path

from autotune.model import capture, factory
from autotune.study.file import read_study

STUDIES = Path(__file__).parents[2] / "studies"

RESNET50_BATCH_1 = "28169e1ad1e4d8178e970286070e548b77e55dcdc8f947ed0b576b72ab321147"
"""Seen under torch 2.11.0 with CUDA 13 on an H200's host and under torch 2.13.0 on a CPU."""


def test_structure_is_the_same_under_every_supported_torch():
    from autotune.model.inputs import generate

    study = read_study(STUDIES / "resnet50" / "study.yaml")
    inputs = generate(study.input_specs(), 1, 0, 1, "example")[0]
    module = factory.make_module(study.factory, 0)
    assert capture.capture("resnet50", 1, module, inputs).workload.structure == RESNET50_BATCH_1
