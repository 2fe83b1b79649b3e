"""The tests' own MariaDB is a real one, listens on no port, and leaves nothing behind."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, make_url, text
from tests.support.child_server import ServerUnavailableError, is_alive, wait_until_gone
from tests.support.mariadb import ExternalMariaDB, InstalledMariaDB, MariaDBServer, start_mariadb

MakeEngine = Callable[..., Engine]


@pytest.fixture
def installed(mariadb_server: MariaDBServer) -> InstalledMariaDB:
    if not isinstance(mariadb_server, InstalledMariaDB):
        pytest.skip("This server belongs to somebody else.")
    return mariadb_server


def test_the_server_is_a_real_mariadb(mariadb_url: str, make_engine: MakeEngine) -> None:
    with make_engine(mariadb_url).connect() as connection:
        assert "MariaDB" in str(connection.scalar(text("SELECT version()")))
        assert connection.dialect.name == "mariadb"


def test_text_is_unicode(mariadb_url: str, make_engine: MakeEngine) -> None:
    with make_engine(mariadb_url).begin() as connection:
        connection.execute(text("CREATE TABLE t (word TEXT)"))
        connection.execute(text("INSERT INTO t VALUES (:word)"), {"word": "Äπ🙂"})
        assert connection.scalar(text("SELECT word FROM t WHERE word = 'äπ🙂'")) == "Äπ🙂"


def test_the_server_listens_on_no_port(installed: InstalledMariaDB, mariadb_url: str, make_engine: MakeEngine) -> None:
    with make_engine(mariadb_url).connect() as connection:
        assert connection.scalar(text("SELECT @@skip_networking")) == 1


@pytest.mark.parametrize("attempt", [1, 2])
def test_each_test_gets_an_empty_database(mariadb_url: str, make_engine: MakeEngine, attempt: int) -> None:
    with make_engine(mariadb_url).begin() as connection:
        # Fails on the second attempt if the first one's table is still there.
        connection.execute(text("CREATE TABLE only_once (n INTEGER)"))


def test_a_server_that_is_closed_leaves_no_process_and_no_folder(installed: InstalledMariaDB) -> None:
    server = InstalledMariaDB()
    pid, folder = server.pid, Path(str(server.admin_url.query["unix_socket"])).parent
    assert server.is_running()
    server.close()

    assert pid is not None
    assert not is_alive(pid)
    assert not folder.exists()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "SIGINT"])
def test_a_test_process_that_is_ended_takes_its_server_along(installed: InstalledMariaDB, end: signal.Signals) -> None:
    code = (
        "import signal, time; from tests.support.mariadb import InstalledMariaDB; "
        # A process started in the background may have been told to ignore Ctrl-C.
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        "server = InstalledMariaDB(); "
        "print(server.pid, server.admin_url.query['unix_socket'], flush=True); time.sleep(600)"
    )
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=root) as process:
        assert process.stdout
        pid, socket = process.stdout.readline().split()
        process.send_signal(end)

    wait_until_gone(int(pid), Path(socket).parent)


def test_a_named_server_is_used_and_never_stopped(
    monkeypatch: pytest.MonkeyPatch, mariadb_server: MariaDBServer, mariadb_url: str
) -> None:
    monkeypatch.setenv("PII_VAULT_TEST_MARIADB_URL", mariadb_url.replace("mariadb+pymysql:", "mysql:"))
    external = start_mariadb()
    name = external.create_database()
    assert make_url(external.url(name)).drivername == "mariadb+pymysql"
    external.drop_database(name)
    external.close()

    assert isinstance(external, ExternalMariaDB)
    assert mariadb_server.is_running()


def test_a_named_server_that_is_not_mariadb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PII_VAULT_TEST_MARIADB_URL", "sqlite:///somewhere.sqlite3")
    with pytest.raises(ValueError, match="MariaDB"):
        start_mariadb()


def test_a_machine_without_mariadb_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PII_VAULT_TEST_MARIADB_URL", raising=False)
    monkeypatch.setattr("shutil.which", lambda *_args, **_options: None)
    with pytest.raises(ServerUnavailableError, match=r"apt-get install mariadb-server-core"):
        start_mariadb()
