import json
import re
from pathlib import Path

import pytest

from autotune.report.results import verify_results

RESULTS = sorted((Path(__file__).parents[2] / "studies").glob("*/results/*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_every_figure_of_a_committed_result_follows_from_its_samples(path):
    document = json.loads(path.read_text())
    assert verify_results(document) == []
    assert document["name"] == path.parts[-3]
    usual = f"{document['device']['sku']}-b{document['batch']}"
    assert re.fullmatch(rf"{re.escape(usual)}(-[0-9a-f]+)?\.json", path.name), path
    assert path.name == f"{usual}.json" or path.with_name(f"{usual}.json").exists()


def test_there_are_results_to_check():
    assert RESULTS
