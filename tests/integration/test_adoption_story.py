"""Two columns go the whole way, up and down, with four releases at work: no write fails and none is lost."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sqlalchemy import Connection, Engine, text
from tests.support.adoption_app import EXAMPLE, ProcessRelease, example
from tests.support.child_server import ServerUnavailableError
from tests.support.postgres import EmbeddedPostgres

ROWS = 50_000
"""In each of two tables."""


@pytest.fixture
def logical_server() -> Iterator[EmbeddedPostgres]:
    """A server whose log can be decoded."""
    try:
        server = EmbeddedPostgres()
    except ServerUnavailableError as error:
        pytest.skip(f"its files are looked into, so it is made of the wheel's PostgreSQL: {error}")
    server.start()
    with server._connect() as connection:
        connection.execute("ALTER SYSTEM SET wal_level = 'logical'")
    server.stop()
    server.start()
    yield server
    server.close()


def test_a_hundred_thousand_rows_go_all_the_way_and_back_on_postgresql(
    logical_server: EmbeddedPostgres, tmp_path: Path, make_engine: Callable[..., Engine]
) -> None:
    url = logical_server.url(logical_server.create_database())
    story = story_on(url, tmp_path, ROWS)
    run, releases = example("run"), example("releases")
    try:
        story.migrate("0001")
        story.seed()
        engine = make_engine(url, isolation_level="AUTOCOMMIT")
        first, *way = run.up()
        follow(story, [first])
        with engine.connect() as connection:
            assert plaintext_in_log(connection, lambda: time.sleep(0.3)) > 10
        follow(story, way)
        story.stop()
        assert story.journal.writes > 2 * ROWS + 500
        assert story.journal.reads > 200
        assert (story.journal.failures, story.journal.wrong, story.lost(releases.Final)) == ([], [], [])
        with engine.connect() as connection:
            assert plaintext_in_log(connection, lambda: write_more(story)) == 0
            connection.exec_driver_sql("CHECKPOINT")
            assert plaintext_in_files(connection) > ROWS
            # What was dropped is wiped by nobody: its statistics hold values, too.
            connection.exec_driver_sql("VACUUM FULL")
            connection.exec_driver_sql("CHECKPOINT")
            assert plaintext_in_files(connection) == 0
        story.deploy(releases.Final)
        follow(story, run.down())
        story.stop()
        assert (story.journal.failures, story.journal.wrong, story.lost(releases.Plain)) == ([], [], [])
    finally:
        story.close()


def test_the_same_on_sqlite(tmp_path: Path) -> None:
    story = story_on(f"sqlite:///{tmp_path / 'application.sqlite3'}", tmp_path, 2_000)
    run = example("run")
    try:
        shown = StringIO()
        assert run.play(story, Console(file=shown, width=100), back=True) == []
        assert "plaintext found in what is stored: 0" in shown.getvalue()
    finally:
        story.close()


@pytest.mark.parametrize(
    ("sabotage", "said"),
    [
        ("UPDATE customers SET email_sealed = NULL", "lost: customers "),
        ("CREATE TABLE kept AS SELECT 'canary-7' AS value", "plaintext values are left"),
    ],
)
def test_the_example_fails_when_a_write_is_lost_or_a_plaintext_is_left(
    sabotage: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = example("run")
    stop = run.Story.stop

    def sabotaged(story: Any) -> None:
        """Spoil it when nobody writes any longer, who would write the same row again."""
        running = story.deployed is not None
        stop(story)
        if running:
            with story.engine.begin() as connection:
                connection.execute(text(sabotage))

    monkeypatch.setattr(run.Story, "stop", sabotaged)
    monkeypatch.setattr(sys, "argv", ["run.py", "--rows", "20", "--seconds", "0.05"])
    assert run.main() == 1
    assert said in capsys.readouterr().err


def test_the_example_runs_as_the_page_says() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE / "run.py"), "--rows", "200", "--seconds", "0.1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "0 differ" in done.stdout
    assert "plaintext found in what is stored: 0" in done.stdout


def story_on(url: str, folder: Path, rows: int) -> Any:
    run = example("run")
    story = run.Story(url, folder, rows, 0.3)
    if not url.startswith("sqlite"):
        story.release = ProcessRelease
    return story


def follow(story: Any, way: list[tuple[str, str, Any]]) -> None:
    for kind, argument, models in way:
        if kind == "step":
            story.step(argument, models)
        elif kind == "deploy":
            story.deploy(models)
        else:
            story.migrate(argument)


def write_more(story: Any) -> None:
    """Let the last release write for a moment."""
    story.deploy(example("releases").Final)
    story.stop()


def plaintext_in_log(connection: Connection, write: Any) -> int:
    """Return how often a value is in what the server's log tells a subscriber, old rows and new ones."""
    for table in ("customers", "notes"):
        connection.exec_driver_sql(f"ALTER TABLE {table} REPLICA IDENTITY FULL")
    connection.exec_driver_sql("CREATE PUBLICATION everything FOR ALL TABLES")
    connection.exec_driver_sql("SELECT pg_create_logical_replication_slot('everything', 'pgoutput')")
    write()
    changes = connection.scalars(
        text(
            "SELECT data FROM pg_logical_slot_get_binary_changes('everything', NULL, NULL, "
            "'proto_version', '1', 'publication_names', 'everything')"
        )
    ).all()
    connection.exec_driver_sql("SELECT pg_drop_replication_slot('everything')")
    connection.exec_driver_sql("DROP PUBLICATION everything")
    assert len(changes) > 20
    return sum(bytes(each).count(example("writers").CANARY.encode()) for each in changes)


def plaintext_in_files(connection: Connection) -> int:
    """Return how often a value is in the files of the database: tables, indexes, statistics."""
    folder = connection.scalar(
        text(
            "SELECT current_setting('data_directory') || '/base/' || oid FROM pg_database "
            "WHERE datname = current_database()"
        )
    )
    files = [each for each in Path(str(folder)).iterdir() if each.is_file()]
    assert sum(each.stat().st_size for each in files) > 10_000_000
    return sum(each.read_bytes().count(example("writers").CANARY.encode()) for each in files)
