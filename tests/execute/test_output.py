import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.execute import output
from autotune.execute.output import OutputLog


@given(parts=st.lists(st.binary(max_size=40), max_size=20))
def test_the_end_of_what_was_written_is_kept(tmp_path_factory, parts):
    path = tmp_path_factory.mktemp("log") / "log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output, "LOG_BYTES", 50)
        log = OutputLog(path)
        for part in parts:
            log.write(part)
            assert path.stat().st_size <= 50
        log.close()
    whole = b"".join(parts)
    assert log.total_bytes == len(whole) and path.read_bytes() == whole[-50:]


def test_what_fits_is_in_the_file_at_once(tmp_path):
    log = OutputLog(tmp_path / "log")
    log.write(b"a line\n")
    assert (tmp_path / "log").read_bytes() == b"a line\n"
    log.close()
