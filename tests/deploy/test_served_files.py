"""Plans as files of servers: loaded by the format's own library, in a process that does not know autotune."""

import json
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from autotune import registry
from autotune.deploy.served_files import write_served
from autotune.errors import RequestError, WorkError
from autotune.testing.backend_conformance import CPU
from autotune.testing.sample_records import PLAN
from autotune.testing.toy_models import build_toy, expected, toy_inputs

TOY = "convolutional"
SERVERS = {
    "torchscript": (
        "extra = {'autotune.json': ''}\n"
        "model = torch.jit.load(folder + '/model.pt', _extra_files=extra)\n"
        "mark = json.loads(extra['autotune.json'])['plan']\n"
        "with torch.no_grad(): answers = model(*inputs)\n"
    ),
    "aoti": (
        "loader = torch._C._aoti.AOTIModelPackageLoader\n"
        "mark = loader.load_metadata_from_package(folder + '/model.pt2', 'model')['autotune.plan']\n"
        "answers = loader(folder + '/model.pt2', 'model', False, 1, -1).run(inputs)\n"
    ),
    "onnx": (
        "import onnxruntime\n"
        "session = onnxruntime.InferenceSession(folder + '/model.onnx')\n"
        "mark = session.get_modelmeta().custom_metadata_map['autotune.plan']\n"
        "names = [argument.name for argument in session.get_inputs()]\n"
        "feeds = dict(zip(names, (tensor.numpy() for tensor in inputs)))\n"
        "answers = [torch.from_numpy(answer) for answer in session.run(None, feeds)]\n"
    ),
}
SCRIPT = (
    "import json, sys, torch\nfolder, given, taken = sys.argv[1:]\ninputs = torch.load(given)\n{server}"
    "torch.save(list(answers), taken)\nassert 'autotune' not in sys.modules\nprint(mark)\n"
)


@pytest.fixture
def exported(tmp_path):
    """The plan of a format's plainest file, with a store that has its artifact."""

    def make(serving_format):
        (name,) = registry.serving_formats()[serving_format]
        backend = registry.backend(name)
        space = backend.space(CPU, None, has_factory=False)
        plainest = next(one for one in space if registry.is_plain_export(one, serving_format, CPU))
        built = build_toy(backend, CPU, TOY, tmp_path / "toy", configuration=plainest)

        @contextmanager
        def verified(digest):
            yield built.folder

        store = SimpleNamespace(artifacts=SimpleNamespace(verified=verified))
        return replace(PLAN, configuration=plainest, artifact="a" * 64, device=CPU), store

    return make


@pytest.mark.parametrize("serving_format", sorted(SERVERS))
def test_the_formats_own_library_loads_the_file_and_sees_whose_it_is(serving_format, exported, tmp_path):
    plan, store = exported(serving_format)
    folder = write_served(plan, store, serving_format, tmp_path / "out")
    about = json.loads((folder / "plan.json").read_text())
    named = toy_inputs(TOY, 3)
    assert [entry["name"] for entry in about["inputs"]] == list(named) and about["plan"]["uid"] == plan.uid
    torch.save(list(named.values()), tmp_path / "given.pt")
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT.format(server=SERVERS[serving_format])]
    done = subprocess.run(
        [*command, str(folder), str(tmp_path / "given.pt"), str(tmp_path / "taken.pt")], capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, plan.uid), done.stderr
    answers = tuple(torch.load(tmp_path / "taken.pt"))
    torch.testing.assert_close(answers, expected(TOY, named), rtol=1e-4, atol=1e-5)


def test_a_plan_that_a_server_would_run_otherwise_is_refused_and_so_is_a_name_that_is_taken(exported, tmp_path):
    plan, store = exported("torchscript")
    with pytest.raises(RequestError, match="as onnx") as refused:
        write_served(plan, store, "onnx", tmp_path / "out")
    assert "--serve-as onnx" in refused.value.run
    with pytest.raises(RequestError, match="new folder"):
        write_served(plan, store, "torchscript", tmp_path)
    with pytest.raises(WorkError, match="cannot be written"):
        write_served(plan, store, "torchscript", tmp_path / "missing" / "out")
