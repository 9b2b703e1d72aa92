import logging
from concurrent.futures import ThreadPoolExecutor

from autotune.execute.notices import Notices


def test_each_thing_is_said_once_whoever_reports_it():
    said = []
    notices = Notices(said.append)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: notices.say(f"line {number % 3}"), range(60)))
    assert sorted(said) == ["line 0", "line 1", "line 2"]
    notices.say("process 7 uses 1 GiB", of=7)
    notices.say("process 7 uses 2 GiB", of=7)
    assert said[3:] == ["process 7 uses 1 GiB"]


def test_without_somebody_to_tell_it_is_a_warning_in_the_log(caplog):
    Notices().say("waiting")
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [(logging.WARNING, "waiting")]
