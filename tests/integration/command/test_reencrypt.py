"""`reencrypt` in commands: what is left, what is named, and what is said where it fails or is stopped."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import LargeBinary, bindparam, column, delete, select, table, text, update
from tests.support.application import ROWS, Application, stopped_at_row
from tests.support.operator import PASSWORD, Operator

from pii_vault.keystore.schema import index_slots, keys

PATIENTS = table("patients", column("id"), column("email", LargeBinary), column("phone", LargeBinary))
WHEN = r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) UTC"


def stored(app: Application) -> list[tuple[int, bytes, bytes]]:
    with app.engine.connect() as connection:
        rows = connection.execute(select(PATIENTS).order_by(PATIENTS.c.id)).all()
    return [(row.id, bytes(row.email), bytes(row.phone)) for row in rows]


def versions(app: Application) -> dict[int, int]:
    """Say how many values each data-key version has sealed."""
    found = [int.from_bytes(sealed[5:7], "big") for _, *values in stored(app) for sealed in values]
    return {each: found.count(each) for each in set(found)}


def put(app: Application, key: int, email: bytes) -> None:
    with app.engine.begin() as connection:
        connection.execute(update(PATIENTS).where(PATIENTS.c.id == key).values(email=bindparam("new", email)))


def next_day(ops: Operator) -> None:
    """Let the data keys that seal have become active a day earlier, and those before them have ended then."""
    with ops.engine.connect() as connection:
        rows = connection.execute(select(keys).where(keys.c.purpose == "data")).all()
    for row in rows:
        times: dict[str, Any] = {"activated_at": row.activated_at - timedelta(days=1)}
        if row.deactivated_at is not None:
            times["deactivated_at"] = row.deactivated_at - timedelta(days=1)
        mine = (keys.c.purpose == "data", keys.c.version == row.version, keys.c.tenant_uid == row.tenant_uid)
        ops.alter(update(keys).where(*mine).values(**times))


def test_values_move_and_a_day_later_it_is_complete_and_the_old_key_can_go(app: Application) -> None:
    ops, again = app.ops, ("reencrypt", "acme", *app.named("Old"))
    ops.run("key", "rotate", "acme")
    done = ops.process(*again)
    assert done.err == ""
    when = re.fullmatch(rf"acme\t2\t0\trun again after {WHEN}\n", done.out)
    assert when, done.out
    waits = datetime.fromisoformat(f"{when[1]}+00:00") - datetime.now(UTC)
    assert timedelta(hours=23) < waits < timedelta(days=1)
    assert versions(app) == {2: 2 * ROWS}
    (found,) = ops.json("reencrypt", *again[1:])
    assert found.pop("drained_at").startswith(when[1].replace(" ", "T"))
    assert found == {
        "tenant": "acme",
        "dry_run": False,
        "suspended": False,
        "version": 2,
        "rows_left": 0,
        "seconds": None,
        "complete": False,
        "problems": [],
        "foreign": [],
        "astray": [],
        "failure": None,
    }
    next_day(ops)
    assert (ops.process(*again).out, ops.json("reencrypt", *again[1:])[0]["complete"]) == (
        "acme\t2\t0\tcomplete\n",
        True,
    )
    ops.run("key", "destroy", "acme", "1", "--yes", *app.named("Old"))
    ops.run("reencrypt", "acme", *app.metadata)  # with models that declare tokens, values get these too
    assert app.found(7) == 1


def test_a_dry_run_counts_and_writes_nothing(app: Application) -> None:
    ops, dry = app.ops, ("reencrypt", "acme", *app.metadata, "--dry-run")

    def everything() -> list[Any]:
        with ops.engine.connect() as connection:
            return [stored(app), *(connection.execute(select(each)).all() for each in (keys, index_slots))]

    ops.run("key", "rotate", "acme")
    ops.alter(delete(index_slots))  # as if nobody had sealed anything with what is declared now
    before = everything()
    done = ops.process(*dry)
    assert done.err == ""
    assert re.fullmatch(rf"acme\t2\t{ROWS}\tnot complete before {WHEN}\n", done.out), done.out
    (found,) = ops.json("reencrypt", *dry[1:])
    assert (found["dry_run"], found["rows_left"], found["complete"]) == (True, ROWS, False)
    assert everything() == before
    ops.run("reencrypt", "acme", *app.metadata)
    assert ops.json("reencrypt", *dry[1:])[0]["rows_left"] == 0


def test_a_value_that_cannot_be_opened_is_named_and_the_others_move(app: Application) -> None:
    ops, again = app.ops, ("reencrypt", "acme", *app.named("Old"))
    app.break_row(5)
    ops.run("key", "rotate", "acme")
    next_day(ops)
    done = ops.process(*again, code=1)
    assert re.fullmatch(rf"acme\t2\t1\trun again after {WHEN}\n", done.out)
    named, way = done.err.splitlines()
    assert re.match(
        r"pii-vault: tenant 'acme': patients\.email of the row 5: a value of .* does not authenticate", named
    )
    assert way == "pii-vault: what is named stays as it is (mend it or delete it, and run the same command again)"
    assert versions(app) == {1: 1, 2: 2 * ROWS - 1}
    (found,) = ops.json("reencrypt", *again[1:], code=1)
    assert [(each["column"], each["key"]) for each in found["problems"]] == [("patients.email", "5")]
    assert (found["rows_left"], found["complete"], found["failure"]) == (1, False, None)
    with app.engine.begin() as connection:
        connection.execute(text("DELETE FROM patients WHERE id = 5"))
    assert ops.run(*again).out == "acme\t2\t0\tcomplete\n"


def test_what_a_compromised_key_has_sealed_moves_too(local_app: Application) -> None:
    ops = local_app.ops
    ops.run("key", "rotate", "acme")
    ops.run("key", "compromise", "acme", "1", "--yes")
    done = ops.run("reencrypt", "acme", *local_app.named("Old"))
    assert done.err == ""
    assert versions(local_app) == {2: 2 * ROWS}


def test_what_was_sealed_for_another_tenant_is_counted_and_left_alone(app: Application) -> None:
    ops, whose = app.ops, ("--tenant-column", "tenant_id")
    again = ("reencrypt", "acme", *app.named("Old"))
    ops.run("tenant", "add", "glob", *ops.kms.new_key())
    app.write("glob", 1)
    theirs = stored(app)[-1][1]
    for key in (3, 4):
        put(app, key, theirs)
    ops.run("key", "rotate", "acme")
    for how in ((), ("--dry-run",)):
        done = ops.process(*again, *whose, *how, code=1)
        assert done.err == (
            "pii-vault: tenant 'acme': 2 values of patients.email in its rows, not sealed for it and left alone (find "
            "out how that came about)\n"
        )
    (found,) = ops.json("reencrypt", *again[1:], *whose, code=1)
    assert (found["foreign"], found["problems"]) == ([{"column": "patients.email", "count": 2}], [])
    assert [row[1] for row in stored(app) if row[0] in (3, 4)] == [theirs, theirs]
    assert ops.json("reencrypt", *again[1:])[0]["foreign"] == []  # nobody looked


def test_all_tenants_are_done_and_one_that_fails_does_not_keep_the_others(app: Application) -> None:
    ops, again = app.ops, ("reencrypt", "--all", *app.named("Old"))
    dark = ops.kms.new_key()
    ops.run("tenant", "add", "dark", *dark)
    for name in ("glob", "idle"):
        ops.run("tenant", "add", name, *ops.kms.new_key())
    for name in ("dark", "glob", "idle"):
        app.write(name, 2)
    for name in ("acme", "dark", "glob", "idle"):
        ops.run("key", "rotate", name)
    ops.kms.disable(dark[1])
    ops.run("tenant", "suspend", "idle")
    done = ops.process(*again, code=1)
    assert [line.split("\t")[:3] for line in done.out.splitlines()] == [["acme", "2", "0"], ["glob", "2", "0"]]
    failed, left_out = done.err.splitlines()
    assert re.match(r"pii-vault: tenant 'dark': .*Disabled", failed)
    assert left_out == "pii-vault: tenant 'idle' is suspended and was left out"
    assert versions(app) == {1: 8, 2: 2 * ROWS + 4}
    found = {each["tenant"]: each for each in ops.json("reencrypt", *again[1:], code=1)}
    assert list(found) == ["acme", "dark", "glob", "idle"]
    assert [each["suspended"] for each in found.values()] == [False, False, False, True]
    assert "Disabled" in found["dark"]["failure"]
    unknown = ("version", "rows_left", "drained_at")
    assert [found[name][each] for name in ("dark", "idle") for each in unknown] == [None] * 6
    ops.kms.enable(dark[1])
    assert len(ops.rows(*again)) == 3  # a tenant that is suspended is no failure
    assert versions(app) == {1: 4, 2: 2 * ROWS + 8}


def test_without_a_tenant_there_is_nothing_to_do(local: Operator) -> None:
    how = ("reencrypt", "--all", "--metadata", "pii_vault.keystore.schema:metadata")
    assert (local.run(*how).out, local.json("reencrypt", *how[1:])) == ("", [])
    assert "there is no tenant" in local.terminal(*how).text


def test_rows_that_others_change_all_the_time_are_no_failure(
    local_app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_app.ops.run("key", "rotate", "acme")
    monkeypatch.setattr("pii_vault.reencryption.reencrypt.reseal", lambda *_: [])
    done = local_app.ops.run("reencrypt", "acme", *local_app.metadata)
    assert done.out.startswith("acme\t2\t20\trun again after ")
    assert done.err == "pii-vault: tenant 'acme': 20 rows changed meanwhile and left (run the same command again)\n"


def test_ctrl_c_says_how_far_it_is_and_the_same_command_goes_on(postgres_app: Application) -> None:
    """Somebody holds a row of the third batch, so that the command waits there."""
    app, again = postgres_app, ("reencrypt", "acme", *postgres_app.named("Old"))
    app.write("acme", 1000)
    app.ops.run("key", "rotate", "acme")
    assert stopped_at_row(app, 700, *again, "--batch", "300") == (
        "pii-vault: stopped: 600 of 1,020 rows of tenant 'acme' are done; the same command goes on from there\n"
    )
    assert versions(app) == {1: 840, 2: 1200}
    shown = app.ops.terminal(*again, COLUMNS="120")
    assert shown.code == 0
    assert re.search(r"patients of acme +━", shown.text)
    assert "420 of 420" in shown.text
    assert re.search(r"tenant +version +rows left +state", shown.text)
    assert re.search(rf"acme +2 +0 +run again after {WHEN}", shown.text)
    assert versions(app) == {2: 2040}


def test_a_dry_run_says_how_long_the_rest_takes(local_app: Application) -> None:
    ops, again = local_app.ops, ("reencrypt", "acme", *local_app.named("Old"), "--dry-run", "--rate", "0.2")
    ops.run("key", "rotate", "acme")
    assert (
        ops.run(*again).err == "pii-vault: tenant 'acme': it takes about 1 min 40 s, reckoned from some of the rows\n"
    )
    assert ops.json("reencrypt", *again[1:])[0]["seconds"] == 100.0


def test_ctrl_c_lets_the_rows_be_finished_that_are_being_written(postgres_app: Application) -> None:
    app, again = postgres_app, ("reencrypt", "acme", *postgres_app.named("Old"))
    app.write("acme", 1000)
    app.ops.run("key", "rotate", "acme")
    assert stopped_at_row(app, 700, *again, "--batch", "300", patient=True) == (
        "pii-vault: stopped: 900 of 1,020 rows of tenant 'acme' are done; the same command goes on from there\n"
    )
    assert versions(app) == {1: 240, 2: 1800}


def test_a_failure_is_one_line_that_names_what_and_the_way_out(local_app: Application, tmp_path: Path) -> None:
    ops, tables = local_app.ops, local_app.named("Old")
    empty = f"sqlite:///{tmp_path / 'empty.sqlite3'}"
    assert "no tenant 'nobody' is registered" in ops.fails("reencrypt", "nobody", *tables)
    nothing = ("--metadata", "pii_vault.keystore.schema:metadata")
    assert "the metadata holds no encrypted column" in ops.fails("reencrypt", "acme", *nothing)
    assert "is neither a declarative base nor a MetaData" in ops.fails("reencrypt", "acme", *local_app.named("x"))
    assert ops.fails("reencrypt", "acme", *tables, "--tenant-column", "tenant") == (
        "no table of the metadata has a column 'tenant' (give --tenant-column as the tables name it)"
    )
    for how in (("acme",), ("--all",), ("acme", "--dry-run")):
        told = ops.fails("reencrypt", *how, *tables, "--application-url", empty)
        assert told.startswith("table 'patients' cannot be read: OperationalError")
        assert PASSWORD not in told
    ops.run("key", "deactivate", "acme")
    assert ops.fails("reencrypt", "acme", *tables) == (
        "tenant 'acme' has no active data key, so there is nothing to seal with (make one: pii-vault key rotate acme)"
    )
    ops.run("tenant", "suspend", "acme")
    assert "is suspended (resume it first)" in ops.fails("reencrypt", "acme", *tables)


def test_the_command_line_is_refused_before_anything_begins(local_app: Application) -> None:
    tables = local_app.named("Old")
    for wrong in ((), ("acme", "--all"), ("acme", "--batch", "0"), ("acme", "--batch", "10001")):
        local_app.ops.fails("reencrypt", *wrong, *tables, code=2)
    local_app.ops.fails("reencrypt", "acme", code=2)
