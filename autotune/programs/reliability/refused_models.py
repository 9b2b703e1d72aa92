"""Models that must be refused before anything in them runs: pickles, and false ONNX files and safetensors."""

import itertools
import json
import os
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from autotune.database.artifacts import ArtifactStore
from autotune.model.inputs import InputSpec, generate
from autotune.model.onnx_file import check_onnx
from autotune.model.program import load_program
from autotune.programs.reliability.attempt import Attempt, Case
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.workload import TensorSpec, Workload
from autotune.runtime.artifact import describe, load_runner
from autotune.study.file import parse_study

DIGEST = "0" * 64
SPEC = TensorSpec(name="x", shape=(1, 3), dtype="float32")
WORKLOAD = Workload(name="toy", batch=1, structure=DIGEST, weights=DIGEST, inputs=(SPEC,), outputs=(SPEC,))
CPU = Device(kind="cpu", name="host", uuid="cpu-host")


def _pickle_for_a_model(on: Attempt) -> None:
    (on.folder / "model.pt").write_bytes(on.pickled())
    parse_study("name: toy\nmodel: {file: model.pt}\ninputs: [{name: x, shape: [batch, 3]}]", on.folder / "study.yaml")


def _pickle_named_pt2(on: Attempt) -> None:
    (on.folder / "program.pt2").write_bytes(on.pickled())
    load_program(on.folder / "program.pt2")


def _pickle_inside_pt2(on: Attempt) -> None:
    import torch

    sound, bad = on.folder / "sound.pt2", on.folder / "bad.pt2"
    torch.export.save(torch.export.export(torch.nn.Linear(3, 2).eval(), (torch.randn(1, 3),)), str(sound))
    torch.save(on.bomb(), on.folder / "bomb.pt")
    with zipfile.ZipFile(sound) as archive, zipfile.ZipFile(bad, "w") as target:
        for name in archive.namelist():
            inside = name.endswith("sample_inputs/model.pt")
            target.writestr(name, (on.folder / "bomb.pt").read_bytes() if inside else archive.read(name))
    load_program(bad)


def _pickle_as_torchscript(on: Attempt) -> None:
    settings = {"schema": 1, "precision": "fp32", "inputs": [{"name": "x", "shape": [1, 3], "dtype": "float32"}]}
    _load_artifact(on, "torchscript", {"settings.json": json.dumps(settings).encode(), "model.ts": on.pickled()})


def _pickle_as_inputs(on: Attempt) -> None:
    import numpy

    rows = numpy.array([on.bomb()] * 64, dtype=object)
    numpy.savez(on.folder / "rows.npz", x=rows)
    _rows(on.folder / "rows.npz")


def _npz(on: Attempt, header_rows: int, content: Iterable[bytes]) -> None:
    from numpy.lib import format as npy

    path = on.folder / "rows.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as entry:
        npy.write_array_header_1_0(entry, {"descr": "<f4", "fortran_order": False, "shape": (header_rows, 1)})
        for part in content:
            entry.write(part)
    _rows(path)


def _load_artifact(on: Attempt, backend: str, files: Mapping[str, bytes]) -> None:
    built = on.folder / "built"
    built.mkdir()
    for name, content in files.items():
        (built / name).write_bytes(content)
    describe_toy(built, Configuration.of(backend, {"precision": "fp32"}))
    store = ArtifactStore(on.folder / "store")
    with store.verified(store.add(built)) as folder:
        load_runner(folder, CPU)


def describe_toy(folder: Path, configuration: Configuration) -> None:
    """Describe a folder as an artifact of :data:`WORKLOAD`."""
    import torch

    example = {SPEC.name: torch.ones(SPEC.shape)}
    describe(folder, configuration, WORKLOAD, {"kind": "tensor", "index": 0}, example=example)


def _onnx(on: Attempt, entries: Mapping[str, str], domain: str = "", cut: int = 0) -> None:
    from onnx import TensorProto, helper

    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"], domain=domain)], "g", [x], [y], [tensor])
    content = helper.make_model(graph).SerializeToString()
    (on.folder / "weights.bin").write_bytes(bytes(16))
    (on.folder / "model.onnx").write_bytes(content[: len(content) - cut])
    check_onnx(on.folder / "model.onnx")


def _onnx_symlink(on: Attempt) -> None:
    (on.folder / "link").symlink_to(on.outside)
    _onnx(on, {"location": "link"})


def _onnx_hard_link(on: Attempt) -> None:
    (on.folder / "built").mkdir()
    os.link(on.outside, on.folder / "built" / "weights.bin")
    ArtifactStore(on.folder / "store").add(on.folder / "built")


def _safetensors(on: Attempt, tensors: Mapping[str, object] | None, header_bytes: int | None = None) -> None:
    header = json.dumps(tensors or {}).encode()
    size = len(header) if header_bytes is None else header_bytes
    (on.folder / "rows.safetensors").write_bytes(struct.pack("<Q", size) + header + bytes(64))
    _rows(on.folder / "rows.safetensors")


def _rows(path: Path) -> None:
    generate([InputSpec(name="x", shape=("batch", 1), file=str(path))], 1, 0, 1, "timing")


def _tensor(start: int, end: int, rows: int = 8) -> dict[str, object]:
    return {"dtype": "F32", "shape": [rows, 1], "data_offsets": [start, end]}


WEIGHTS = "weights.bin"
CASES = (
    Case("a raw pickle named .pt", _pickle_for_a_model),
    Case("a raw pickle named .pt2", _pickle_named_pt2),
    Case("a pickle inside .pt2", _pickle_inside_pt2),
    Case("a raw pickle as TorchScript", _pickle_as_torchscript),
    Case("a pickle inside .npz", _pickle_as_inputs),
    Case("an .npz that is a bomb", lambda on: _npz(on, 2**25, itertools.repeat(bytes(2**20), 128))),
    Case("an .npz that holds more than its shape", lambda on: _npz(on, 64, [bytes(2**20)])),
    Case("an .npz that declares more than it holds", lambda on: _npz(on, 2**50, [bytes(2**10)])),
    Case("ONNX external data with ../", lambda on: _onnx(on, {"location": "../outside"})),
    Case("ONNX external data at an absolute path", lambda on: _onnx(on, {"location": str(on.outside)})),
    Case("ONNX external data that is a symlink", _onnx_symlink),
    Case("ONNX external data that is a hardlink", _onnx_hard_link),
    Case("ONNX external data past the end", lambda on: _onnx(on, {"location": WEIGHTS, "offset": "8", "length": "9"})),
    Case("ONNX external data at a negative offset", lambda on: _onnx(on, {"location": WEIGHTS, "offset": "-1"})),
    Case("a truncated protobuf", lambda on: _onnx(on, {"location": WEIGHTS}, cut=40)),
    Case("a custom-op domain not allowed", lambda on: _onnx(on, {"location": WEIGHTS}, domain="evil.ops")),
    Case("safetensors with a huge header", lambda on: _safetensors(on, None, header_bytes=2**62)),
    Case("safetensors with a header past the end", lambda on: _safetensors(on, None, header_bytes=1000)),
    Case("safetensors that overlap", lambda on: _safetensors(on, {"x": _tensor(0, 32), "y": _tensor(16, 48)})),
    Case("safetensors with a hole", lambda on: _safetensors(on, {"x": _tensor(0, 32), "y": _tensor(48, 64, rows=4)})),
    Case("safetensors past the end", lambda on: _safetensors(on, {"x": _tensor(0, 4000, rows=1000)})),
)
