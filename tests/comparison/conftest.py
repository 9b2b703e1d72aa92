import pytest

from autotune.database.store import Store


@pytest.fixture
def store(tmp_path):
    with Store.open(str(tmp_path / "a.db"), create=True) as opened:
        yield opened
