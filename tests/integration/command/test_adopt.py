"""`adopt` in commands: what is shown of a column on its way, what the next step is, and what is in the way of it."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from tests.support.application import Application, stopped_at_row
from tests.support.command import pii_vault_process
from tests.support.operator import PASSWORD, Operator

MODELS = """
from sqlalchemy import String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pii_vault import EncryptedString


class Base(DeclarativeBase):
    pass


class Patient(Base):
    __tablename__ = "patients"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    email: Mapped[str | None] = mapped_column(String(60))
    email_sealed: Mapped[str | None] = mapped_column(EncryptedString().adopting("email", falls_back=True))
    phone: Mapped[str | None] = mapped_column(String(60))
    phone_sealed: Mapped[str | None] = mapped_column(EncryptedString().adopting("phone"))
"""
ROWS = 12


@contextmanager
def adopting(ops: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Application]:
    """The application, with rows whose columns are not sealed yet."""
    name = f"adopting_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODELS, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("pii_vault.adoption.adopt._NOTICED", 0.0)
    for variable, value in ops.settings.items():
        monkeypatch.setenv(variable, value)
    models = __import__(name)
    engine = create_engine(ops.settings["PII_VAULT_DATABASE_URL"])
    models.Base.metadata.create_all(engine)
    ops.run("tenant", "add", "acme", *ops.kms.new_key())
    app = Application(ops, models, engine)
    write(app, ROWS)
    yield app
    engine.dispose()
    del sys.modules[name]


def write(app: Application, count: int) -> None:
    rows = [{"e": f"p{n}@acme.example", "p": f"555-{1000 + n}"} for n in range(count)]
    for row in rows[:ROWS]:
        for value in row.values():
            app.ops.secrets.add(value)
    sql(app, "INSERT INTO patients (tenant_id, email, phone) VALUES ('acme', :e, :p)", *rows)


def sql(app: Application, statement: str, *rows: Any) -> None:
    with app.engine.begin() as connection:
        connection.execute(text(statement), list(rows) or None)


@pytest.fixture
def app(local: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Application]:
    with adopting(local, tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def postgres_app(postgres: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Application]:
    with adopting(postgres, tmp_path, monkeypatch) as made:
        yield made


def how(app: Application, *more: str) -> tuple[str, ...]:
    return ("patients.email", *app.metadata, "--tenant-column", "tenant_id", *more)


def test_the_whole_way_says_what_is_next_and_leads_back(app: Application) -> None:
    ops, rows = app.ops, str(ROWS)
    (before,) = [row for row in ops.rows("adopt", "status", *app.metadata) if row[0] == "patients.email"]
    assert before == ["patients.email", "none", rows, "0", rows, "none", "`adopt next` puts the guard there"]
    shown = []
    for _ in range(6):
        done = ops.run("adopt", "next", *how(app, "--quiet", "0", "--reason", "ticket 4711"))
        assert done.err == ""
        (row,) = [line.split("\t") for line in done.out.splitlines()]
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", row.pop(5))
        shown.append(row)
    assert [row[:5] for row in shown] == [
        ["patients.email", "added", rows, "0", rows],
        *(["patients.email", stage, rows, rows, "0"] for stage in ("filled", "verified", "switched", "retired")),
        ["patients.email", "emptied", "0", rows, "0"],
    ]
    assert [row[5] for row in shown] == [
        "deploy the release that writes both columns; `adopt next` then seals what is there",
        "`adopt next` opens every sealed value and compares it with its plaintext",
        "when every process writes both columns, `adopt next` refuses whoever writes email alone, and email_sealed may "
        "be read",
        "deploy the release that reads email_sealed, and let email be NULL; `adopt next` compares once more, and then "
        "email need not be written",
        "deploy the release that does not know email; `adopt next` then empties it",
        "drop patients.email in a migration; what the database keeps of it, docs/adoption.md says",
    ]
    assert ops.fails("adopt", "next", *how(app)) == (
        "the adoption of patients.email is at its last stage, emptied (drop the column 'email' in a migration)"
    )
    for stage in ("retired", "switched", "verified", "filled", "added", "none"):
        assert ops.rows("adopt", "rollback", *how(app))[0][1] == stage
    assert ops.fails("adopt", "rollback", *how(app)) == (
        "the adoption of patients.email has not begun (there is nothing to take back)"
    )
    found = ops.json("adopt status", "patients.email", *app.metadata)
    assert [(each["number"], each["rows"]) for each in found[0]["steps"]][:4] == [
        (1, None),
        *((n, ROWS) for n in (2, 3, 4)),
    ]
    assert {each["by"] for each in found[0]["steps"]} == {"ops@example.com"}
    assert [each["reason"] for each in found[0]["steps"]][5:7] == ["ticket 4711", ""]


def test_json_is_one_document_and_says_how_far_it_is_on_standard_error(app: Application) -> None:
    ops = app.ops
    assert ops.json("adopt next", *how(app))["stage"] == "added"
    done = ops.run("adopt", "next", *how(app, "--batch", "5", "--json"))
    lines = [json.loads(line) for line in done.err.splitlines()]
    assert [(each["tenant"], each["table"], each["rows_done"], each["rows_total"]) for each in lines] == [
        (None, "patients.email", 0, ROWS),
        (None, "patients.email", ROWS, ROWS),
    ]
    assert ops.json("adopt rollback", *how(app))["stage"] == "added"
    assert ops.json("adopt fallback", *how(app, "--end"))["fallback_until"] is None
    assert ops.json("adopt fallback", *how(app, "--days", "3"))["fallback_until"] is not None
    (email, phone) = ops.json("adopt status", *app.metadata)
    assert (email["context"], phone["context"], phone["guard"]) == ("patients.email", "patients.phone", None)


def test_what_is_not_as_the_stage_says_makes_status_exit_with_1(app: Application) -> None:
    ops = app.ops
    for _ in range(2):
        ops.run("adopt", "next", *how(app))
    sql(app, "UPDATE patients SET email = 'x' WHERE id < 4")
    done = ops.run("adopt", "status", "patients.email", *app.metadata, code=1)
    assert done.err == "pii-vault: patients.email: 3 rows were written by somebody who writes 'email' alone\n"
    (found,) = ops.json("adopt status", "patients.email", *app.metadata, code=1)
    assert found["drift"] == ["3 rows were written by somebody who writes 'email' alone"]


def test_a_fallback_is_shown_with_its_end(app: Application) -> None:
    ops = app.ops
    ops.run("adopt", "next", *how(app))
    done = ops.run("adopt", "fallback", *how(app, "--days", "3"))
    assert re.fullmatch(r"pii-vault: patients\.email: reads may take the plaintext until [-\d]+ [:\d]+ UTC\n", done.err)
    assert ops.run("adopt", "fallback", *how(app, "--end")).err == ""
    assert "column.adoption\t\tpatients.email added" in ops.run("audit", "log", "acme").out


def test_what_is_in_the_way_is_one_line(app: Application, tmp_path: Path) -> None:
    ops = app.ops
    assert ops.fails("adopt", "status", "patients.nope", *app.metadata) == (
        "no column adopts 'patients.nope' (those that are known: patients.email, patients.phone)"
    )
    empty = f"sqlite:///{tmp_path / 'empty.sqlite3'}"
    told = ops.fails("adopt", "status", *app.metadata, "--application-url", empty)
    assert told == "there is no table 'patients' in the database"
    unreachable = "postgresql+psycopg://user:hunter2-CANARY@127.0.0.1:1/name"
    told = ops.fails("adopt", "next", *how(app, "--application-url", unreachable))
    assert told == (
        "the application's database cannot be looked into: OperationalError (SELECT on its tables is needed)"
    )
    assert PASSWORD not in told
    ops.run("adopt", "next", *how(app))
    sql(app, "UPDATE patients SET tenant_id = 'nobody' WHERE id = 3")
    assert ops.fails("adopt", "next", *how(app)).startswith(
        "rows of 'patients' hold values and belong to nobody whose keys there are: tenant 'nobody', who is not "
        "registered or is erased: 1 (id = 3)"
    )
    mistaken = ("patients.email", *app.metadata, "--tenant-column", "tenant")
    assert ops.fails("adopt", "next", *mistaken).startswith("the application's database cannot be looked into: ")
    told = ops.fails("adopt", "fallback", "patients.phone", *app.metadata, "--tenant", "acme", "--days", "1")
    assert told == (
        "the model does not declare that 'phone_sealed' falls back "
        "(EncryptedString().adopting('phone', falls_back=True))"
    )
    nothing = ("--metadata", "pii_vault.keystore.schema:metadata")
    assert ops.run("adopt", "status", *nothing).out.startswith("patients.email\tadded")


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_fits_and_bars_show_how_far_it_is(app: Application, columns: int) -> None:
    ops, plain = app.ops, {"LINES": "50", "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": str(columns)}
    ops.run("adopt", "next", *how(app))
    shown = ops.terminal("adopt", "status", *app.metadata, **plain)
    assert shown.code == 0
    head = r"column +stage +plaintext +sealed +" + (r"plaintext only +since +next" if columns == 120 else "next")
    assert re.search(rf"^{head} *$", shown.text, re.MULTILINE), shown.text
    assert all(len(line) <= columns for line in shown.text.splitlines())
    if columns == 120:
        filled = ops.terminal("adopt", "next", *how(app), COLUMNS="120")
        assert re.search(r"patients\.email +━", filled.text)
        assert f"{ROWS} of {ROWS}" in filled.text


@pytest.mark.parametrize("patient", [True, False])
def test_ctrl_c_says_how_far_it_is_and_the_same_command_goes_on(postgres_app: Application, patient: bool) -> None:
    app = postgres_app
    write(app, 1000)
    app.ops.run("adopt", "next", *how(app))
    again = ("adopt", "next", *how(app))
    done = 900 if patient else 600
    assert stopped_at_row(app, 700, *again, "--batch", "300", patient=patient) == (
        f"pii-vault: stopped: {done} of 1,012 rows are done; the same command goes on from there\n"
    )
    (found,) = app.ops.json("adopt status", "patients.email", *app.metadata)
    assert (found["stage"], found["rows_with_sealed"]) == ("added", done)
    assert app.ops.rows(*again)[0][1:5] == ["filled", "1,012", "1,012", "0"]


def test_ctrl_c_while_it_watches_ends_it_at_once(app: Application) -> None:
    ops = app.ops
    for _ in range(3):
        ops.run("adopt", "next", *how(app))
    process = pii_vault_process("adopt", "next", *how(app, "--quiet", "600", "--json"), **ops.settings)
    assert process.stderr is not None
    assert json.loads(process.stderr.readline())["rows_total"] == 0
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", err)
    assert err.splitlines()[-1] == "pii-vault: stopped; the same command goes on from there"
    assert ops.json("adopt status", "patients.email", *app.metadata)[0]["stage"] == "verified"
