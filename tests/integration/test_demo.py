"""The demo runs on every database and KMS, proves what it says, fails when it cannot, and leaves nothing behind."""

import io
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sqlalchemy import create_engine, text
from tests.support.command import Outcome, environment, pii_vault_command, pii_vault_on_terminal
from tests.support.strict_kms import VENDOR, StrictKms

from pii_vault.demo.screen import Screen
from pii_vault.demo.stage import Stage, stage
from pii_vault.demo.story import PEOPLE, Story

SENTENCES = (
    "None of the 6 names and addresses is in the database",
    "The application gets back what it wrote.",
    "Old rows open with version 1, the new one with version 2.",
    "Both refused: every value is sealed for its tenant and column.",
    "Dark after",
    "Readable again after",
    "Verified. Then the owner of the database edits one: entry 5 is not what was written there.",
    "All 8 claims were checked as they were made, and hold.",
)


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """The folder in which the demo makes its own temporary folder."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def piped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """What the demo prints into a pipe, and the folder for its temporary one. It waits for keys to expire, so once."""
    folder = tmp_path_factory.mktemp("tmp")
    return pii_vault_command("demo", TMPDIR=str(folder)), folder


def test_the_demo_runs_on_nothing_and_leaves_nothing(piped: tuple[Outcome, Path]) -> None:
    done, folder = piped
    assert (done.code, done.err) == (0, "")
    assert all(sentence in done.out for sentence in SENTENCES)
    assert list(folder.iterdir()) == []


def test_a_piped_demo_is_plain_text_of_100_columns_and_60_lines(piped: tuple[Outcome, Path]) -> None:
    done, _ = piped
    assert "\x1b" not in done.out
    assert max(map(len, done.out.splitlines())) <= 100
    assert len(done.out.splitlines()) <= 60


def test_the_demo_shows_stored_bytes_beside_what_the_application_gets(piped: tuple[Outcome, Path]) -> None:
    lines = piped[0].out.splitlines()
    assert any("what the database holds" in line and "what the application gets" in line for line in lines)
    assert any("codec: text" in line and "Ada Lovelace" in line for line in lines)


def test_a_terminal_sees_the_same_words_in_colour(temporary: Path) -> None:
    shown = pii_vault_on_terminal("demo", TMPDIR=str(temporary), COLUMNS="100")
    assert "\x1b[" in shown
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert all(sentence in plain for sentence in SENTENCES)
    assert list(temporary.iterdir()) == []


def test_a_narrow_terminal_gets_one_panel_below_the_other(temporary: Path) -> None:
    shown = pii_vault_on_terminal("demo", TMPDIR=str(temporary), COLUMNS="80", NO_COLOR="1")
    panels = [line for line in shown.splitlines() if "what the " in line and ("holds" in line or "gets" in line)]
    assert len(panels) >= 2
    assert not any("database holds" in line and "application gets" in line for line in panels)


def test_the_demo_speaks_ascii_where_the_terminal_does(temporary: Path) -> None:
    done = pii_vault_command("demo", TMPDIR=str(temporary), PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.code, done.err) == (0, "")
    assert done.out.isascii()


def test_the_demo_runs_on_postgresql_and_a_kms_over_http(
    strict_kms: StrictKms,
    postgres_url: str,
    temporary: Path,
) -> None:
    arguments = ("--database-url", postgres_url, "--kms", "aws", "--endpoint-url", strict_kms.endpoint_url)
    with strict_kms.counting() as calls:
        done = pii_vault_command("demo", *arguments, TMPDIR=str(temporary), **strict_kms.environment())
    assert (done.code, done.err) == (0, "")
    assert all(sentence in done.out for sentence in SENTENCES)
    assert "PostgreSQL" in done.out
    assert "KmsDeniedError" in done.out
    assert calls.count("Decrypt", outcome="DisabledException") == 1
    assert schemas(postgres_url) == []
    assert [calls.count(name, outcome="ok") for name in ("CreateKey", "ScheduleKeyDeletion")] == [3, 3]


def test_the_demo_uses_given_keys_and_leaves_them_enabled(
    strict_kms: StrictKms,
    temporary: Path,
) -> None:
    account = VENDOR.split(":")[4]
    keys = [strict_kms.create_key(account) for _ in range(3)]
    for key in keys:
        owner = ["kms:GenerateDataKey", "kms:Decrypt", "kms:DisableKey", "kms:EnableKey"]
        strict_kms.allow(key, VENDOR, actions=owner)
    given = [part for key in keys for part in ("--key", key)]
    arguments = ("--kms", "aws", "--endpoint-url", strict_kms.endpoint_url, *given)
    done = pii_vault_command("demo", *arguments, TMPDIR=str(temporary), **strict_kms.environment())
    assert (done.code, done.err) == (0, "")
    assert [strict_kms.state(key) for key in keys] == ["Enabled"] * 3
    assert strict_kms.count("CreateKey") == strict_kms.count("ScheduleKeyDeletion") == 0


def test_a_demo_whose_kms_fails_in_the_middle_clears_away_what_it_made(
    strict_kms: StrictKms,
    postgres_url: str,
    temporary: Path,
) -> None:
    from tests.support.strict_kms import FaultRule

    strict_kms.script(FaultRule("Decrypt", after=3, times=None, error="KMSInternalException"))
    arguments = ("--database-url", postgres_url, "--kms", "aws", "--endpoint-url", strict_kms.endpoint_url)
    done = pii_vault_command("demo", *arguments, TMPDIR=str(temporary), **strict_kms.environment())
    assert done.code == 1
    assert "KMSInternalException" in done.err
    assert len(done.err.splitlines()) == 1
    assert schemas(postgres_url) == []
    assert list(temporary.iterdir()) == []
    assert strict_kms.count("ScheduleKeyDeletion", outcome="ok") == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_clears_away_what_it_made(temporary: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "pii_vault", "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(TMPDIR=str(temporary)),
        # A shell's background job ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if b"prevent the dark" in line:
            break
    assert len(list(temporary.iterdir())) == 1
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err == b""
    assert list(temporary.iterdir()) == []


def test_a_kms_that_ignores_its_owner_makes_the_demo_fail(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Deaf:
        def disable_key(self, arn: str) -> None: ...
        def enable_key(self, arn: str) -> None: ...

    assert played(temporary, monkeypatch, keys={"owner": Deaf()}) == 1


def test_plaintext_in_the_database_makes_the_demo_fail(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = PEOPLE["globex"][0][0].encode()
    assert played(temporary, monkeypatch, database={"stored_bytes": lambda: bytes(5000) + name}) == 1


def test_a_database_that_shows_no_bytes_makes_the_demo_fail(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert played(temporary, monkeypatch, database={"stored_bytes": lambda: b""}) == 1


def played(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, *, database: dict[str, Any] | None = None, keys: Any = None
) -> int:
    """Play the demo on a stage with other parts, and return how many claims did not hold."""
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    screen = Screen(Console(file=io.StringIO(), width=100))
    with stage(None, "local", None, []) as set_up:
        altered = Stage(replace(set_up.database, **database or {}), replace(set_up.keys, **keys or {}))
        Story(altered, screen).tell()
    assert screen.claims == 8
    return screen.failures


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--kms", "aws", "--key", "arn:x"], "three different keys"),
        (["--kms", "aws", "--key", "arn:x", "--key", "arn:x"], "three different keys"),
        (["--kms", "aws"], "makes no keys in AWS"),
        (["--kms", "gcp"], "local or aws"),
        (["--key", "arn:x"], "for --kms aws"),
        (["--database-url", "sqlite:///app.sqlite3"], "for PostgreSQL"),
        (["--database-url", "nonsense"], "for PostgreSQL"),
    ],
)
def test_a_demo_that_cannot_run_says_why_in_one_line(arguments: list[str], reason: str, temporary: Path) -> None:
    done = pii_vault_command("demo", *arguments, TMPDIR=str(temporary))
    assert done.code == 1
    assert reason in done.err
    assert len(done.err.splitlines()) == 1
    assert list(temporary.iterdir()) == []


def schemas(url: str) -> list[str]:
    engine = create_engine(url)
    with engine.connect() as connection:
        found = connection.scalars(text("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'pii_vault%'")).all()
        tables = connection.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).all()
    engine.dispose()
    return [*found, *tables]
