import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from sqlalchemy import create_engine, text

from autotune.errors import DatabaseError, RequestError
from autotune.programs.reliability import postgresql
from tests.databases import need_postgresql


def test_a_server_asks_for_its_password_listens_here_only_and_leaves_nothing():
    need_postgresql()
    before = set(Path(tempfile.gettempdir()).glob("autotune-scratch-postgresql-*"))
    with pytest.raises(KeyError), postgresql.serving(durable=False) as server:
        (folder,) = set(Path(tempfile.gettempdir()).glob("autotune-scratch-postgresql-*")) - before
        engine = create_engine(server.create("mine"))
        with engine.connect() as connection:
            shown = {
                name: connection.execute(text(f"SHOW {name}")).scalar()
                for name in ("listen_addresses", "unix_socket_directories", "fsync", "password_encryption")
            }
            pid = connection.execute(text("SELECT pg_backend_pid()")).scalar()
            process = psutil.Process(pid).parent()
        engine.dispose()
        assert shown == {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "password_encryption": "scram-sha-256",
        }
        assert process.uids().real != 0 and (folder / "server").stat().st_mode & 0o077 == 0
        assert server.password not in repr(server)
        with pytest.raises(Exception, match="password"):
            create_engine(f"postgresql+psycopg://{server.user}:x@{server.host}:{server.port}/mine").connect()
        server.drop("mine")
        raise KeyError
    assert not process.is_running() and not folder.exists()


def test_the_server_ends_with_a_program_that_is_killed():
    need_postgresql()
    program = """
import sys, time
from autotune.programs.reliability.postgresql import serving
with serving(durable=False) as server:
    print(server.port, flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None and parent.stdout.readline()
        servers = [child for child in psutil.Process(parent.pid).children() if child.name() == "postgres"]
        assert len(servers) == 1
        os.kill(parent.pid, signal.SIGKILL)
    assert not psutil.wait_procs(servers, timeout=20)[1] or servers[0].status() == psutil.STATUS_ZOMBIE


def test_if_it_is_not_installed_the_command_is_shown(monkeypatch, tmp_path):
    monkeypatch.setattr(postgresql, "PACKAGED", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RequestError, match="apt-get install -y postgresql"), postgresql.serving():
        pass


def test_the_newest_of_the_installed_versions_is_taken(monkeypatch, tmp_path):
    for version in ("9.6", "15", "17"):
        folder = tmp_path / version / "bin"
        folder.mkdir(parents=True)
        for program in ("initdb", "postgres"):
            (folder / program).touch()
    monkeypatch.setattr(postgresql, "PACKAGED", tmp_path)
    assert postgresql.programs() == tmp_path / "17" / "bin"


def test_a_server_that_does_not_start_says_why(monkeypatch):
    need_postgresql()
    monkeypatch.setattr(postgresql, "_free_port", lambda: 0)
    started = time.monotonic()
    with pytest.raises(DatabaseError, match="port"), postgresql.serving(durable=False):
        pass
    assert time.monotonic() - started < postgresql.START_S
