import json


def test_explain_tells_of_one_plan_what_it_was_held_against(autotune, database):
    asked = ("explain", "resnet50", "--batch", "1", "--device", "h200", "--db", database)
    found = json.loads(autotune(*asked, "--json").stdout)
    assert (found["name"], found["batch"], found["latency_ms"]) == ("resnet50", 1, 1.0)
    assert found["graph"] is None and found["before"] is None
    text = autotune(*asked).stdout
    assert "not measured: the finals took no trace of kernels" in " ".join(text.split())


def test_explain_refuses_a_model_without_a_plan(autotune, database):
    result = autotune("explain", "nothing", "--db", database)
    assert result.exit_code != 0 and "no plan for nothing" in result.stderr
