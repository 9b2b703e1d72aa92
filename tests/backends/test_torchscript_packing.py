"""Packed convolutions answer as the frozen graph does, before and after they are saved, and in every thread."""

import copy
import io
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autotune.backends.torchscript_packing import pack
from autotune.deploy.drop_in import quiet


def norm(channels):
    layer = nn.BatchNorm2d(channels)
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    return layer


class Patterns(nn.Module):
    """Every form of a convolution: what is packed with its neighbours, and what stays."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), norm(8)
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)
        self.grouped = nn.Conv2d(8, 12, (3, 1), stride=(2, 1), padding=(1, 0), groups=4)
        self.wide = nn.Conv2d(8, 1, 1)
        self.back = nn.ConvTranspose2d(12, 4, 2)
        self.row = nn.Conv1d(4, 4, 3)

    def forward(self, image):
        x = torch.relu_(self.stem_norm(self.stem(image)))
        y = self.first(x)
        y += x
        y = y.relu()  # an addition in place, and ReLU
        twice = self.second(y)  # read by an activation and an addition
        z = nn.functional.relu6(self.depthwise(nn.functional.silu(twice) + twice))
        broadcast = nn.functional.hardswish(self.wide(z)) + z  # an addition with other sizes
        tail = self.back(nn.functional.hardsigmoid(self.grouped(broadcast)))
        dynamic = nn.functional.conv2d(y, z[:1, :, :3, :3].reshape(1, 8, 3, 3))
        return self.row(tail.flatten(2)), self.second(z), y.view(y.shape[0], -1), dynamic


class Written(nn.Module):
    """A tensor is written to between its convolution and the activation that would be computed with it."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(4, 4, 1)

    def forward(self, image):
        x = image * 1
        y = self.convolution(x)
        x[:, 0] = 7
        return torch.relu(y) + x, x


def frozen(module, image):
    with quiet(), torch.no_grad():
        return torch.jit.freeze(torch.jit.trace(module.eval(), image, check_trace=False))


def packed(module, image):
    """The file of a packed module, its graph's operators, and the answer without packing."""
    plain = frozen(module, image)
    with quiet(), torch.no_grad():
        answer = plain(image)
        pack(plain, (image,))
        written = io.BytesIO()
        torch.jit.save(plain, written)
    return written.getvalue(), Counter(node.kind() for node in plain.graph.nodes()), answer


def loaded(content):
    with quiet():
        return torch.jit.load(io.BytesIO(content))


@pytest.fixture
def patterns():
    torch.manual_seed(0)
    image = torch.randn(2, 3, 16, 16)
    return image, *packed(Patterns(), image)


def assert_close(answers, right):
    torch.testing.assert_close(tuple(answers), tuple(right), rtol=1e-4, atol=1e-4)


def test_every_form_of_convolution_keeps_its_answer(patterns):
    image, content, kinds, right = patterns
    with torch.no_grad():
        answers = loaded(content)(image)
    assert_close(answers, right)
    assert [answer.is_contiguous() for answer in answers] == [answer.is_contiguous() for answer in right]
    assert kinds["mkldnn::_convolution_pointwise"] == 7
    assert kinds["aten::_convolution"] == 3, "transposed, one dimension, and a weight that is no constant"
    assert kinds["aten::relu"] == kinds["aten::hardtanh"] == kinds["aten::hardsigmoid"] == 0
    assert kinds["aten::silu"] == 1 and kinds["aten::add"] == 2, "what has other readers or other sizes stays"


def test_a_packed_module_is_saved_and_copied_as_it_was_loaded(patterns):
    image, content, _, right = patterns
    module, written = loaded(content), io.BytesIO()
    with quiet(), torch.no_grad():
        module(image)
        torch.jit.save(module, written)
        assert_close(loaded(written.getvalue())(image), right)
        assert_close(copy.deepcopy(module)(image), right)
        assert_close(module.cpu().double().float()(image), right)
    assert not module.state_dict()


def test_threads_make_the_first_call_together(patterns):
    image, content, _, right = patterns
    module, start = loaded(content), Barrier(8)

    def call(_):
        start.wait()
        with torch.no_grad():
            return module(image)

    with ThreadPoolExecutor(8) as pool:
        for answers in pool.map(call, range(8)):
            assert_close(answers, right)


def test_torch_alone_loads_the_file(patterns, tmp_path):
    image, content, _, right = patterns
    (tmp_path / "model.ts").write_bytes(content)
    torch.save(image, tmp_path / "image.pt")
    script = (
        "import sys, torch\n"
        "with torch.no_grad(): answers = torch.jit.load('model.ts')(torch.load('image.pt'))\n"
        "torch.save(answers, 'answers.pt')\n"
        "assert 'autotune' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-I", "-W", "ignore", "-c", script], check=True, cwd=tmp_path)
    assert_close(torch.load(tmp_path / "answers.pt"), right)


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="needs instructions for bf16")
def test_weights_in_bf16_are_packed_too():
    torch.manual_seed(0)
    image = torch.randn(2, 4, 6, 5, dtype=torch.bfloat16)
    content, kinds, right = packed(Net([(3, 1, False, 0, 0, "relu")]).bfloat16(), image)
    with torch.no_grad():
        for answer, expected in zip(loaded(content)(image), right, strict=True):
            torch.testing.assert_close(answer, expected, rtol=2e-2, atol=2e-2)
    assert kinds["mkldnn::_convolution_pointwise"] == 1


def test_what_is_written_to_in_between_keeps_its_order():
    image = torch.randn(1, 4, 5, 5)
    content, kinds, right = packed(Written(), image)
    with torch.no_grad():
        assert_close(loaded(content)(image), right)
    assert kinds["mkldnn::_convolution_pointwise"] == 1


def test_a_graph_without_convolutions_of_images_is_refused():
    with pytest.raises(RuntimeError, match="no convolution that can be packed"):
        packed(nn.Conv1d(3, 4, 3), torch.randn(2, 3, 8))


def test_a_graph_that_depends_on_strides_is_refused():
    class Strided(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 1)

        def forward(self, image):
            return self.convolution(image).as_strided((2, 2), (1, 2))

    with pytest.raises(RuntimeError, match="by strides"):
        packed(Strided(), torch.randn(1, 3, 4, 4))


class Net(nn.Module):
    """A small net of steps that a test draws; later steps read earlier tensors of the same sizes."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, 4, kernel, padding=kernel // 2, groups=groups), *([norm(4)] if normed else []))
            for kernel, groups, normed, _, _, _ in steps
        )

    def forward(self, image):
        tensors = [image]
        for layer, (_, _, _, source, residual, activation) in zip(self.layers, self.steps, strict=True):
            x = layer(tensors[source % len(tensors)])
            if residual is not None:
                other = tensors[residual % len(tensors)]
                x = x + other if residual % 2 else other + x
            tensors.append(ACTIVATIONS[activation](x))
        return tuple(tensors[-2:])


ACTIVATIONS = {
    "none": lambda x: x,
    "relu": torch.relu,
    "in place": lambda x: torch.relu_(x) if x._base is None else torch.relu(x),
    "relu6": nn.functional.relu6,
    "silu": nn.functional.silu,
    "gelu": nn.functional.gelu,
}
STEP = st.tuples(
    st.sampled_from([1, 3]), st.sampled_from([1, 2, 4]), st.booleans(), st.integers(0, 5),
    st.none() | st.integers(0, 5), st.sampled_from(sorted(ACTIVATIONS)),
)  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(steps=st.lists(STEP, min_size=1, max_size=5), seed=st.integers(0, 9))
def test_random_nets_keep_their_answers(steps, seed):
    torch.manual_seed(seed)
    image = torch.randn(2, 4, 6, 5)
    content, kinds, right = packed(Net(steps), image)
    with torch.no_grad():
        assert_close(loaded(content)(image), right)
    assert kinds["aten::_convolution"] == 0
