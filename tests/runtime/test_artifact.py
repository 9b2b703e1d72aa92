import json
from pathlib import Path
from typing import Any

import pytest
import torch

from autotune.errors import ArtifactError
from autotune.records.configuration import Configuration
from autotune.records.workload import TensorSpec, Workload
from autotune.runtime.artifact import ModelAnswer, describe, read_answer, read_example, read_record

CONFIGURATION = Configuration.of("eager", {"precision": "fp32", "threads": 1})
INPUTS = (
    TensorSpec(name="x", shape=(2, 3), dtype="float32"),
    TensorSpec(name="a", shape=(), dtype="bool"),
    TensorSpec(name="ids", shape=(2,), dtype="int64"),
)
WORKLOAD = Workload(name="toy", batch=2, structure="1" * 64, weights="2" * 64, inputs=INPUTS, outputs=INPUTS[:1])
SCHEMA = {"kind": "tensor", "index": 0}


def example() -> dict[str, torch.Tensor]:
    return {"ids": torch.tensor([3, 1, 2, 5])[::2], "a": torch.tensor(True), "x": torch.arange(6.0).view(3, 2).t()}


def described(folder: Path, **more: Any) -> Path:
    folder.mkdir()
    describe(folder, CONFIGURATION, WORKLOAD, SCHEMA, example=example(), **more)
    return folder


def test_a_description_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = read_record(described(tmp_path / "a", kernels="digest of kernels"))
    assert (found.structure, found.weights, found.configuration) == (
        WORKLOAD.structure,
        WORKLOAD.weights,
        CONFIGURATION,
    )
    assert (found.inputs, found.outputs, found.output_schema) == (INPUTS, INPUTS[:1], SCHEMA)
    assert found.kernels == "digest of kernels"
    assert read_record(described(tmp_path / "b")).kernels == ""


def test_the_example_comes_back_in_the_order_of_the_inputs(tmp_path: Path) -> None:
    x, a, ids = read_example(described(tmp_path / "a"))
    for found, given in ((x, example()["x"]), (a, example()["a"]), (ids, example()["ids"])):
        assert found.dtype == given.dtype and torch.equal(found, given) and found.is_contiguous()


def test_an_example_outlives_its_file(tmp_path: Path) -> None:
    folder = described(tmp_path / "a")
    x, _, _ = read_example(folder)
    file = folder / "example.safetensors"
    file.write_bytes(bytes(file.stat().st_size))
    assert torch.equal(x, example()["x"])


def test_one_example_is_written_as_the_same_bytes(tmp_path: Path) -> None:
    first = described(tmp_path / "a") / "example.safetensors"
    second = tmp_path / "b"
    second.mkdir()
    describe(second, CONFIGURATION, WORKLOAD, SCHEMA, example=dict(reversed(example().items())))
    assert first.read_bytes() == (second / "example.safetensors").read_bytes()


def test_the_description_of_an_earlier_version_is_refused_with_the_remedy(tmp_path: Path) -> None:
    folder = described(tmp_path / "a")
    record: dict[str, Any] = json.loads((folder / "artifact.json").read_text())
    for schema, who in ((1, "an earlier"), (3, "another"), ("x", "another")):
        (folder / "artifact.json").write_text(json.dumps({**record, "schema": schema}))
        with pytest.raises(ArtifactError, match=f"written by {who} version") as caught:
            read_record(folder)
        assert f"schema {schema}" in caught.value.found
        assert "autotune tune" in caught.value.run and "autotune.load" in caught.value.run


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"schema": 2}'])
def test_what_is_no_description_is_refused(damage: str, tmp_path: Path) -> None:
    folder = described(tmp_path / "a")
    (folder / "artifact.json").write_text(damage)
    with pytest.raises(ArtifactError, match="a is not an artifact"):
        read_record(folder)


def test_an_example_that_is_absent_or_damaged_is_refused(tmp_path: Path) -> None:
    folder = described(tmp_path / "a")
    file = folder / "example.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="no example inputs that can be read"):
        read_example(folder)
    file.unlink()
    with pytest.raises(ArtifactError, match=r"example\.safetensors with x, a, ids"):
        read_example(folder)


def test_the_answer_of_the_model_is_kept_with_the_size_of_its_errors(tmp_path: Path) -> None:
    assert read_answer(described(tmp_path / "a")) is None, "an artifact of an earlier version"
    tensors = (torch.arange(6.0).view(3, 2).t(), torch.tensor([], dtype=torch.int64))
    folder = described(tmp_path / "b", answer=ModelAnswer(tensors=tensors, scales=(0.5, 0.0)))
    found = read_answer(folder)
    assert found is not None and tuple(found.scales) == (0.5, 0.0)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found.tensors, tensors, strict=True))
    for content in (b"", (folder / "answer.safetensors").read_bytes()[:-1]):
        (folder / "answer.safetensors").write_bytes(content)
        with pytest.raises(ArtifactError, match="no answer that can be read"):
            read_answer(folder)
