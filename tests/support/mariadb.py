"""A real MariaDB for the tests: a server that somebody else runs, or one that is installed, as a child process.

`PII_VAULT_TEST_MARIADB_URL` names the former. For the latter, `mariadbd` has to be on the PATH or in `/usr/sbin`, as in
Debian's package `mariadb-server-core`, which has neither a service nor a client. There is no wheel of it.
"""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import signal
import subprocess
import time
import uuid
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import pymysql
from sqlalchemy.engine import URL, make_url
from tests.support.child_server import ServerUnavailableError, Watchdog, child_options, make_folder, server_user

ENVIRONMENT_VARIABLE = "PII_VAULT_TEST_MARIADB_URL"
START_TIMEOUT = 60.0
STOP_TIMEOUT = 60.0


class MariaDBServer(ABC):
    """A MariaDB server on which tests make databases of their own."""

    def __init__(self) -> None:
        self._prefix = f"pii_vault_{uuid.uuid4().hex[:12]}"
        self._counter = itertools.count(1)

    @property
    @abstractmethod
    def admin_url(self) -> URL:
        """Where to connect in order to create databases."""

    @abstractmethod
    def close(self) -> None:
        """Stop the server and remove everything it left."""

    def is_running(self) -> bool:
        """Tell whether the server accepts connections."""
        try:
            self._connect().close()
        except pymysql.err.OperationalError:
            return False
        return True

    def url(self, dbname: str) -> str:
        """Return the SQLAlchemy URL of a database."""
        return self.admin_url.set(database=dbname).render_as_string(hide_password=False)

    def create_database(self) -> str:
        """Create an empty database and return its name."""
        name = f"{self._prefix}_{next(self._counter)}"
        self._execute(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4")
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database; it waits for those who hold a lock on one of its tables."""
        self._execute(f"DROP DATABASE IF EXISTS `{name}`")

    def _execute(self, command: str) -> None:
        with self._connect() as connection, connection.cursor() as cursor:
            cursor.execute(command)

    def _connect(self) -> pymysql.Connection[Any]:
        url = self.admin_url
        socket = url.query.get("unix_socket")
        return pymysql.connect(
            user=url.username,
            password=url.password or "",
            host=url.host or "localhost",
            port=url.port or 0,
            unix_socket=socket if isinstance(socket, str) else None,
            connect_timeout=10,
        )


class ExternalMariaDB(MariaDBServer):
    """A server that somebody else runs. The tests create and drop databases there, and never stop it."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = make_url(url)
        if self._url.get_backend_name() not in {"mariadb", "mysql"}:
            raise ValueError(f"{ENVIRONMENT_VARIABLE} is not the URL of a MariaDB database.")
        self._url = self._url.set(drivername="mariadb+pymysql")
        self._connect().close()

    @property
    def admin_url(self) -> URL:
        return self._url

    def close(self) -> None:
        """Leave the server alone: each test has dropped its own databases."""


class InstalledMariaDB(MariaDBServer):
    """The machine's MariaDB as a child process that listens on a socket in a temporary folder."""

    def __init__(self) -> None:
        super().__init__()
        self._program = _find_program()
        self._user = server_user()
        self._owner_pid = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = make_folder("pii-vault-maria-", self._user)
        self._watchdog = Watchdog(self._folder)
        atexit.register(self.close)
        try:
            self._make_data()
            self._launch()
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise

    @property
    def admin_url(self) -> URL:
        return URL.create(
            "mariadb+pymysql", username="root", host="localhost", query={"unix_socket": str(self._folder / "socket")}
        )

    @property
    def pid(self) -> int | None:
        """The process id of the server, or None when it is down."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def close(self) -> None:
        # A forked child inherits this object and its exit handler, but the server is the parent's.
        if os.getpid() != self._owner_pid:
            return
        atexit.unregister(self.close)
        try:
            if self.pid and self._process:
                self._process.send_signal(signal.SIGTERM)
                self._process.wait(STOP_TIMEOUT)
        finally:
            # It kills what has not stopped by then.
            self._watchdog.tell(self.pid)
            self._watchdog.finish()

    def _make_data(self) -> None:
        # What mariadb-install-db does, without help texts and a sys schema, and without the client's programs, which
        # Debian's mariadb-server-core does not bring.
        data = self._folder / "data"
        data.mkdir()
        if self._user:
            shutil.chown(data, self._user)
        statements = ["CREATE DATABASE mysql;", "USE mysql;", "SET @auth_root_socket = NULL;"]
        statements += [path.read_text() for path in _system_tables(self._program)]
        done = subprocess.run(
            [str(self._program), *self._options(), "--bootstrap"],
            input="\n".join(statements),
            capture_output=True,
            text=True,
            check=False,
            **self._child_options(),
        )
        if done.returncode:
            raise RuntimeError(f"MariaDB could not make its system tables:\n{done.stderr}")

    def _launch(self) -> None:
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(self._program), *self._options(), f"--socket={self._folder / 'socket'}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches every process of the terminal's group. The server must outlive the test.
                start_new_session=True,
                **self._child_options(),
            )
        self._watchdog.tell(self._process.pid)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not self.is_running():
            if self.pid is None or time.monotonic() > deadline:
                log = (self._folder / "log").read_text(errors="replace")
                raise RuntimeError(f"MariaDB did not start:\n{log}")
            time.sleep(0.01)

    def _options(self) -> list[str]:
        return [
            "--no-defaults",
            f"--datadir={self._folder / 'data'}",
            f"--tmpdir={self._folder}",
            f"--pid-file={self._folder / 'pid'}",
            "--skip-networking",
            "--skip-name-resolve",
            "--character-set-server=utf8mb4",
            # No test cuts the machine's power, and a data directory lives for seconds.
            "--innodb-flush-method=nosync",
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-doublewrite=0",
            "--innodb-buffer-pool-dump-at-shutdown=0",
            "--innodb-log-file-size=16M",
            "--innodb-buffer-pool-size=32M",
            "--aria-pagecache-buffer-size=8M",
            "--key-buffer-size=8M",
            # io_uring is forbidden in many containers.
            "--innodb-use-native-aio=0",
        ]

    def _child_options(self) -> dict[str, Any]:
        return child_options(self._folder, self._user, "MYSQL", "MARIADB")


def start_mariadb() -> MariaDBServer:
    """Start a server, or use the one that somebody named. The caller closes it.

    Raises:
        ServerUnavailableError: none is named and none is installed. A server that is there and fails is another error.
    """
    configured = os.environ.get(ENVIRONMENT_VARIABLE)
    return ExternalMariaDB(configured) if configured else InstalledMariaDB()


def missing() -> str | None:
    """Say why there is no MariaDB, or None where there is one."""
    try:
        if not os.environ.get(ENVIRONMENT_VARIABLE):
            _find_program()
    except ServerUnavailableError as error:
        return str(error)
    return None


def _find_program() -> Path:
    # Debian's folder for servers is often not on the PATH of a plain user.
    found = shutil.which("mariadbd") or shutil.which("mariadbd", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise ServerUnavailableError(
            f"no MariaDB: install one (Debian: apt-get install mariadb-server-core) or set {ENVIRONMENT_VARIABLE} "
            "to the URL of a server on which databases may be created"
        )
    return Path(found).resolve()


def _system_tables(program: Path) -> list[Path]:
    """Return the statements that make the system tables; the files' names are mysql's or mariadb's by version."""
    for folder in ("mariadb", "mysql"):
        share = program.parent.parent / "share" / folder
        found = [
            path
            for part in ("system_tables", "performance_tables", "system_tables_data")
            for path in share.glob(f"m*_{part}.sql")
        ]
        if found:
            return found
    raise ServerUnavailableError(f"{program} has no system tables beside it, in share/mariadb or share/mysql")
