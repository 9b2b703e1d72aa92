from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from autotune.errors import StudyFileError
from autotune.model.inputs import InputSpec
from autotune.records.objective import Metric, Objective
from autotune.study.file import parse_duration, parse_study, read_study
from autotune.study.yaml_document import LARGEST_BYTES, read_yaml

LEAST = "name: toy\nmodel: {factory: models.py:toy}\ninputs: [{name: x, shape: [batch, 3]}]\n"
SOURCE = Path("/studies/toy/study.yaml")


def refused(text):
    with pytest.raises(StudyFileError) as caught:
        parse_study(text, SOURCE)
    return caught.value


def test_only_name_model_and_inputs_are_required():
    study = parse_study(LEAST, SOURCE)
    assert (study.name, study.batch, study.device, study.serve_as) == ("toy", (1,), "auto", "any")
    assert (study.search.trials, study.search.budget, study.search.seed) == (60, 180.0, 0)
    assert (study.space.backends, study.space.precision) == (None, None)
    assert study.objective_record() == Objective()
    assert study.input_specs() == (InputSpec(name="x", shape=("batch", 3), dtype="float32"),)


def test_callables_may_have_long_paths():
    folder = "/home/someone/" + "a-long-folder/" * 20
    study = parse_study(
        LEAST + f"constraints: {{metrics: [{{function: '{folder}metrics.py:top1', at_least: 0.7}}]}}\n", SOURCE
    )
    assert study.objective_record().metrics[0].function == f"{folder}metrics.py:top1"


def test_a_whole_file():
    study = parse_study(
        """
name: bert-base
model: {factory: ../models.py:bert}
inputs:
  - {name: input_ids, shape: [batch, 128], dtype: int64, low: 0, high: 30522}
  - {name: pixels, shape: [batch, 3, 8, 8], dtype: float32, distribution: photograph}
  - {name: rows, shape: [batch, 4], file: data/rows.npz, key: a}
batch: [1, 32]
device: cuda:1
objective: latency_p50
constraints:
  signal_error: {logits: 1e-3, default: 0.05}
  integer_agreement: 0.999
  metrics: [{function: "metrics.py:top1", at_least: 0.7}, {function: "package.metrics:loss", at_most: 1}]
serve_as: onnx
space: {backends: [eager, onnxruntime], precision: [fp32, fp16]}
search: {trials: 12, budget: 1h30m, seed: 7}
""",
        SOURCE,
    )
    assert study.batch == (1, 32)
    assert study.factory == "/studies/models.py:bert"
    ids, pixels, rows = study.input_specs()
    assert (ids.low, ids.high, ids.dtype) == (0, 30522, "int64")
    assert pixels.drawn_from == "photograph"
    assert (rows.file, rows.key) == ("/studies/toy/data/rows.npz", "a")
    assert study.objective_record() == Objective(
        signal_error=0.05,
        signal_error_by_output=(("logits", 1e-3),),
        integer_agreement=0.999,
        metrics=(
            Metric(function="/studies/toy/metrics.py:top1", at_least=0.7),
            Metric(function="package.metrics:loss", at_most=1.0),
        ),
    )
    assert study.space.backends == ("eager", "onnxruntime")
    assert study.search.budget == 5400.0


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ("modle: 3", ["line 4", "unknown key 'modle'", "name, model, inputs", "did you mean model?"]),
        ("search: {trails: 3}", ["search.trails", "one of trials, budget, seed", "did you mean trials?"]),
        ("search:\n  seed: 1\n  trials: 0", ["line 6", "search.trials", "found: 0", "greater than or equal to 1"]),
        ("search: {trials: -1}", ["search.trials", "found: -1"]),
        ("search: {trials: true}", ["search.trials", "found: True", "integer"]),
        ("search: {budget: 0s}", ["search.budget", "found: '0s'", "90s, 3m or 1h30m"]),
        ("search: {budget: -3m}", ["search.budget", "'-3m'"]),
        ("search: {budget: 90}", ["search.budget", "found: 90", "90s, 3m"]),
        ("search: {warm_start: 1}", ["search.warm_start", "found: 1", "boolean"]),
        ("search: {warm_start: maybe}", ["search.warm_start", "found: 'maybe'", "boolean"]),
        (
            "search: {warmstart: true}",
            ["unknown key 'warmstart'", "tune_kernels, warm_start", "did you mean warm_start?"],
        ),
        ("device: gpu", ["line 4: device", "found: 'gpu'", "auto, cpu, cuda or cuda:N"]),
        ("objective: latency_p90", ["objective", "one of latency_p50", "did you mean latency_p99?"]),
        ("batch: auto", ["batch", "auto for latency_p50", "objective: throughput"]),
        ("serve_as: onxx", ["serve_as", "any, torchscript, aoti, onnx", "did you mean onnx?"]),
        ("batch: [1, 1]", ["batch", "each once"]),
        ("batch: []", ["batch", "at least one"]),
        ("batch: 0", ["batch", "found: 0"]),
        ("batch: one", ["batch", "found: 'one'", "integer"]),
        ("space: {backends: eager}", ["space.backends", "all, or a list"]),
        ("space: {precision: [fp8]}", ["space.precision[0]", "fp32, tf32, bf16, fp16"]),
        ("constraints: {signal_error: 2}", ["constraints.signal_error", "less than 1"]),
        ("constraints: {signal_error: .nan}", ["constraints.signal_error", ".nan"]),
        ("constraints: {integer_agreement: 0}", ["constraints.integer_agreement", "greater than 0"]),
        ("constraints: {metrics: [{function: a:b}]}", ["constraints", "exactly one of at_most and at_least"]),
        ("constraints: 3", ["constraints", "signal_error, integer_agreement, metrics"]),
        ("search:", ["search", "found: nothing", "trials, budget, seed"]),
        ("name: other", ["line 4", "'name' a second time"]),
        ("batch: &a 1\ndevice: *a", ["line 4", "anchor"]),
        ("batch: !!python/object/apply:os.system [ls]", ["line 4", "tag"]),
        ("batch: [1", ["valid YAML"]),
        ('device: "\\UFFFFFFFF"', ["valid YAML"]),
    ],
)
def test_what_is_wrong_is_said_with_its_line_and_what_is_accepted(extra, says):
    message = str(refused(LEAST + extra + "\n"))
    assert message.startswith(f"study file {SOURCE}")
    for part in says:
        assert part in message, message


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("name: toy", "name: ../toy", ["line 1: name", "lower-case"]),
        ("name: toy", "name: a..b", ["line 1: name"]),
        ("name: toy", "name: 7", ["line 1: name", "found: 7"]),
        ("name: toy\n", "", ["no key 'name'", "name: resnet50"]),
        ("factory: models.py:toy", "file: toy.onnx", ["line 2: model.file", "/studies/toy/toy.onnx", "found: no file"]),
        ("{factory: models.py:toy}", "{}", ["line 2: model", "neither factory nor file", "file: model.pt"]),
        ("factory: models.py:toy", "factory: a.py:b, file: a.pt", ["line 2: model", "found: factory and file"]),
        ("name: x, shape", "shape", ["line 3: inputs[0]", "no key 'name'"]),
        (", shape: [batch, 3]", "", ["line 3: inputs[0]", "no key 'shape' of input x", "shape: [batch, 3"]),
        ("inputs: [{name: x, shape: [batch, 3]}]", "", ["inputs", "no key 'inputs'"]),
        ("models.py:toy", "models.py", ["line 2: model.factory", "path.py:callable"]),
        ("batch, 3", "batch, 0", ["line 3: inputs[0].shape[1]", "positive whole number", "batch"]),
        ("batch, 3", "batch, three", ["inputs[0].shape[1]", "'three'"]),
        ("]}]", "], dtype: float23}]", ["inputs[0].dtype", "did you mean float32?"]),
        ("]}]", "], dtype: int64}]", ["line 3: inputs[0]", "integers need 'high'"]),
        ("]}]", "], low: 1}]", ["line 3: inputs[0]", "do not apply to distribution normal"]),
        ("]}]", "], file: rows.csv}]", ["line 3: inputs[0]", ".npz or .safetensors"]),
        ("[{name: x, shape: [batch, 3]}]", "[]", ["line 3: inputs"]),
        ("]}]", "]}, {name: x, shape: [1]}]", ["inputs[1]", "second time"]),
    ],
)
def test_wrong_values_of_what_is_required(old, new, says):
    assert old in LEAST
    message = str(refused(LEAST.replace(old, new)))
    for part in says:
        assert part in message, message


def test_the_other_wrong_lines_are_named_too():
    message = str(refused(LEAST + "device: gpu\nbatch: 0\nserve_as: onxx\n"))
    assert "line 4: device" in message
    assert "more is wrong on lines 5, 6" in message


def test_reading_a_file(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(LEAST)
    assert read_study(path).factory == f"{tmp_path.resolve()}/models.py:toy"
    assert read_study(path).source == path
    for content in (b"\xff\xfe", b"a" * (LARGEST_BYTES + 1), b"", b"- 1"):
        path.write_bytes(content)
        with pytest.raises(StudyFileError, match="study file"):
            read_study(path)
    for missing in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(StudyFileError, match=r"found: (No such file|Is a directory)"):
            read_study(missing)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("3m", 180), ("1h30m", 5400), ("1.5m", 90), ("1h1m1s", 3661)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "0s", "3", "m", "-3m", "3m1h", "1e3s", "3 m", "31d", "9999h", "9" * 50 + "s", "٣m"]
)
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


def test_numbers_and_words_follow_yaml_1_2():
    document = read_yaml("{a: 1e-3, b: no, c: 1:30, d: 0x10, e: ~, f: true, g: -7, h: 'true', i: .5, j: 1_000}", "it")
    assert document.data == {
        **{"a": 1e-3, "b": "no", "c": "1:30", "d": "0x10", "e": None},
        **{"f": True, "g": -7, "h": "true", "i": 0.5, "j": "1_000"},
    }


KEYS = [
    "name",
    "model",
    "inputs",
    "batch",
    "device",
    "objective",
    "constraints",
    "serve_as",
    "space",
    "search",
    "factory",
    "shape",
    "dtype",
    "low",
]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["toy", "x.py:f", "3m"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.text(max_size=300) | st.text(alphabet="ab:-{}[],&*!|>'\"#%@ \n\t?<0.e", max_size=120))
@example("[" * 500)
@example("a: " + "{a: " * 500)
@example("? {a: 1}\n: 2")
@example('"\\ud800": 1')
@example("%YAML 99999999999999999999.1\n--- a")
@example("a: " + "9" * 6000)
def test_any_text_is_read_or_refused(text):
    try:
        parse_study(text, SOURCE)
    except StudyFileError as error:
        assert str(error).startswith("study file")


@settings(deadline=None)
@given(VALUES)
def test_any_values_are_read_or_refused(value):
    import yaml

    entries = value if isinstance(value, dict) else {"inputs": value, "constraints": value, "search": value}
    for text in (yaml.safe_dump(entries), LEAST + yaml.safe_dump(entries)):
        try:
            study = parse_study(text, SOURCE)
        except StudyFileError as error:
            assert str(error).startswith("study file")
        else:
            assert study.input_specs()
