"""A throwaway PostgreSQL server from the system's packages: serving."""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from sqlalchemy import URL, create_engine, text

from autotune.errors import DatabaseError, RequestError
from autotune.scratch import ScratchFolder

__all__ = ["Server", "programs", "serving"]

INSTALL = "apt-get install -y postgresql"
PACKAGED = Path("/usr/lib/postgresql")
"""The place of Debian's folder for each major version; its programs are not on PATH."""
OTHER_USERS = ("postgres", "nobody")
"""The accounts that root may change to: PostgreSQL refuses to run as root."""
ODD = "@:/?#%41&='\" é"
"""Part of every password, so that code that handles passwords wrongly fails."""
START_S = 60.0
STOP_S = 30.0
ATTEMPTS = 5
"""A free port may be taken by another program before the server has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running server: its address, and the account to connect with."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)

    def url(self, database: str) -> str:
        """Return the URL of a database, with the password."""
        return self._url(database).render_as_string(hide_password=False)

    def create(self, database: str, template: str = "template0") -> str:
        """Create a database, empty or as a copy of another to which nothing is connected; returns its URL."""
        self._execute(f'CREATE DATABASE "{database}" TEMPLATE "{template}"')
        return self.url(database)

    def create_in(self, folder: Path, database: str) -> str:
        """Create an empty database whose tables lie in an empty folder; returns its URL."""
        account = _account()
        if account is not None:
            os.chown(folder, account.pw_uid, account.pw_gid)
        self._execute(f"CREATE TABLESPACE \"{database}\" LOCATION '{folder}'")
        self._execute(f'CREATE DATABASE "{database}" TEMPLATE "template0" TABLESPACE "{database}"')
        return self.url(database)

    def drop(self, database: str) -> None:
        """Remove a database and end the connections to it."""
        self._execute(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')

    def _url(self, database: str) -> URL:
        return URL.create("postgresql+psycopg", self.user, self.password, self.host, self.port, database)

    def _execute(self, statement: str) -> None:
        engine = create_engine(self._url("postgres"), isolation_level="AUTOCOMMIT", hide_parameters=True)
        try:
            with engine.connect() as connection:
                connection.execute(text(statement))
        finally:
            engine.dispose()


def programs() -> Path:
    """Return the folder of PostgreSQL's newest programs; raises RequestError if it is not installed."""
    packaged = [path.parent for path in PACKAGED.glob("*/bin/initdb") if (path.parent / "postgres").exists()]
    if packaged:
        return max(packaged, key=lambda folder: float(folder.parent.name))
    on_path = shutil.which("initdb")
    if on_path is not None and (folder := Path(on_path).resolve().parent).joinpath("postgres").exists():
        return folder
    raise RequestError("No PostgreSQL can be started", found=f"no initdb in {PACKAGED}/*/bin or on PATH", run=INSTALL)


@contextmanager
def serving(*, durable: bool = True) -> Iterator[Server]:
    """Run a server on a free port of 127.0.0.1, and stop and delete it at the end.

    It asks for a password, and root runs it as another user. ``durable=False`` does not wait for the disk, which only
    tests of speed and kills need. The server ends with the process that started it, however that ends. Raises
    RequestError if PostgreSQL is not installed, and DatabaseError if it does not start.
    """
    binaries, account = programs(), _account()
    with ScratchFolder("postgresql") as above:
        above.chmod(0o711)  # another user must reach what is below
        folder = above / "server"
        folder.mkdir(mode=0o700)
        password = secrets.token_hex(8) + ODD
        secret = folder / "password"
        secret.write_text(password)
        if account is not None:
            for path in (folder, secret):
                os.chown(path, account.pw_uid, account.pw_gid)
        initialised = subprocess.run(
            [
                *(binaries / "initdb", "--pgdata", folder / "data", "--username", "autotune", "--pwfile", secret),
                *("--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync"),
            ],
            **_identity_of(account),
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if initialised.returncode:
            raise DatabaseError("No PostgreSQL can be started", found=initialised.stderr.strip()[-2000:])
        for attempt in range(ATTEMPTS):
            port = _free_port()
            process = _start(binaries, folder, port, account, durable=durable)
            try:
                if _is_ready(binaries, process, port):
                    yield Server(host="127.0.0.1", port=port, user="autotune", password=password)
                    return
            finally:
                _stop(process)
            log = (folder / "log").read_text(errors="replace").strip()
            if "could not bind" not in log or attempt + 1 == ATTEMPTS:
                raise DatabaseError("No PostgreSQL can be started", found=log[-2000:] or "no answer and no message")


def _account() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    for name in OTHER_USERS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise RequestError("No PostgreSQL can be started", found=f"root, and no user {' or '.join(OTHER_USERS)}")


class _Identity(TypedDict, total=False):
    user: int
    group: int
    extra_groups: tuple[int, ...]


def _identity_of(account: pwd.struct_passwd | None) -> _Identity:
    return {} if account is None else {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": ()}


def _start(
    binaries: Path, folder: Path, port: int, account: pwd.struct_passwd | None, *, durable: bool
) -> subprocess.Popen[bytes]:
    settings: dict[str, object] = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": ""}
    if not durable:
        settings |= {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
    end_with_parent = ("setpriv", "--pdeathsig", "INT", "--") if shutil.which("setpriv") else ()
    with open(folder / "log", "wb") as log:
        return subprocess.Popen(
            [
                *(*end_with_parent, binaries / "postgres", "-D", folder / "data"),
                *(word for name, value in settings.items() for word in ("-c", f"{name}={value}")),
            ],
            **_identity_of(account),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C in a terminal is for the program that uses the server
        )


def _is_ready(binaries: Path, process: subprocess.Popen[bytes], port: int) -> bool:
    command = [str(binaries / "pg_isready"), "--quiet", "--host", "127.0.0.1", "--port", str(port)]
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        if subprocess.run(command, check=False).returncode == 0:
            return process.poll() is None  # else another server answered, and ours found the port taken
        time.sleep(0.05)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):  # fast, immediate, by force
        if process.poll() is None:
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
                return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
