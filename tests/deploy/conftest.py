"""A plan by TorchScript of a model whose code lies in a folder of its own, as that of a user does."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import autotune

MODULE = "net_of_a_user"
MODEL = """
    import collections, time
    import torch

    Answer = collections.namedtuple("Answer", "second hidden")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = torch.nn.Linear(16, 32), torch.nn.Linear(32, 4)

        def forward(self, x, shift=None, scale=None, training=False):
            time.sleep(0.002)  # in no graph, so that a graph is faster even on a busy host
            hidden = torch.relu(self.first(x))
            return Answer(self.last(hidden) * scale, hidden)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedNet:
    """The model with the inputs of a call and its answers; its plan ``net`` at batch 3 is in ``database``."""

    folder: Path
    net: torch.nn.Module
    inputs: dict[str, torch.Tensor]
    answers: tuple[torch.Tensor, ...]

    @property
    def database(self) -> str:
        return str(self.folder / "autotune.db")

    @property
    def calls(self) -> Path:
        """A file with inputs and answers, for another process."""
        return self.folder / "calls.pt"

    def check_elsewhere(self, loads: str, folder: Path, *, absent: Sequence[str]) -> None:
        """Call the plan that an expression loads in a process that cannot import the model, nor finds a database.

        The process may not import the ``absent`` modules either.
        """
        program = f"""
            import sys, torch, autotune
            fast = {loads}
            inputs, answers = torch.load({str(self.calls)!r})
            for answer in (fast(**inputs), fast(inputs["x"], None, inputs["scale"], training=False)):
                torch.testing.assert_close(answer.second, answers[0], rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(answer["hidden"], answers[1], rtol=1e-4, atol=1e-5)
            print(sorted(set({list(absent)}) & set(sys.modules)), sorted(fast.seconds), fast.plan.name)
            fast.close()
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False, cwd=folder,
            env={**os.environ, "AUTOTUNE_DB": "/nonexistent/autotune.db"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout == "[] ['look_up', 'open'] net\n"


@pytest.fixture(scope="session")
def tuned_net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TunedNet]:
    folder = tmp_path_factory.mktemp("tuned-net")
    (folder / f"{MODULE}.py").write_text(textwrap.dedent(MODEL))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        torch.manual_seed(0)
        net = __import__(MODULE).Net().eval()
        inputs = {"x": torch.randn(3, 16), "scale": torch.rand(1) + 0.5}
        with torch.no_grad():
            answers = tuple(net(**inputs))
        made = TunedNet(folder=folder, net=net, inputs=inputs, answers=answers)
        torch.save((inputs, answers), made.calls)
        autotune.optimize(
            net, inputs, db=made.database, name="net", backends=("torchscript",), serve_as="torchscript", trials=3,
            budget="60s", device="cpu",
        ).close()  # fmt: skip
        yield made
    sys.modules.pop(MODULE, None)
