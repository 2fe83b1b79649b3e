"""`index` in commands: how far indexes are, completing them, replacing their key, and what is said where it fails."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import LargeBinary, column, delete, select, table, text, update
from tests.support.application import ROWS, Application, stopped_at_row
from tests.support.command import pii_vault_command, pii_vault_here, pii_vault_on_terminal
from tests.support.documents import document
from tests.support.operator import PASSWORD, Operator

from pii_vault.errors import BlindIndexError
from pii_vault.keystore.schema import keys

SLOTS = [
    ["patients.email", "0", "index"],
    ["patients.phone", "0", "index"],
    ["patients.phone", "1", "last4"],
]


def lines(*states: tuple[str, int], tenant: str = "acme", total: int = ROWS) -> list[list[str]]:
    """What a table says: tenant, column, slot, token, state and counts; contexts and forms are left out."""
    return [[tenant, *slot, state, f"{have} / {total}"] for slot, (state, have) in zip(SLOTS, states, strict=True)]


def table_of(out: str) -> list[list[str]]:
    return [line.split("\t")[:6] for line in out.splitlines()]


# Completing indexes.


def test_an_index_is_completed_and_every_process_finds_by_it(app: Application) -> None:
    ops, status = app.ops, ("index", "status", "acme", *app.metadata)
    before = ops.run(*status, code=1)
    assert table_of(before.out) == lines(*[("building", 0)] * 3)
    assert [line.split("\t")[6] for line in before.out.splitlines()] == ["patients.email", *["patient-phone"] * 2]
    assert before.err == (
        "pii-vault: tenant 'acme': values of patients.email, patients.phone lack a token and are not found by it (seal "
        "them anew: pii-vault index build acme)\n"
    )
    with pytest.raises(BlindIndexError, match="index build acme"):
        app.found(7)

    done = ops.process("index", "build", "acme", *app.metadata)
    assert (table_of(done.out), done.err) == (lines(*[("ready", ROWS)] * 3), "")
    assert app.found(7) == 1
    assert ops.run(*status).out == done.out
    again = ops.json("index build", "acme", *app.metadata)
    assert [(each["complete"], each["problems"], each["failure"]) for each in again] == [(True, [], None)]
    (found,) = ops.json("index status", "acme", *app.metadata)
    assert (found["tenant"], found["complete"], found["suspended"]) == ("acme", True, False)
    assert found["slots"] == again[0]["slots"]
    assert found["slots"][0] | {"form": ""} == {
        "column": "patients.email",
        "context": "patients.email",
        "slot": 0,
        "token": None,
        "form": "",
        "state": "ready",
        "missing": 0,
        "total": ROWS,
    }
    assert [each["token"] for each in found["slots"]] == [None, None, "last4"]


def test_what_lacks_nothing_is_complete_before_anybody_has_said_that_it_is_ready(local_app: Application) -> None:
    ops = local_app.ops
    ops.run("tenant", "add", "new")
    status = ops.run("index", "status", "new", *local_app.metadata)
    assert (table_of(status.out), status.err) == (lines(*[("building", 0)] * 3, tenant="new", total=0), "")
    assert ops.json("index status", "new", *local_app.metadata)[0]["complete"] is True
    ops.run("index", "build", "new", *local_app.metadata)
    assert table_of(ops.run("index", "status", "new", *local_app.metadata).out) == lines(
        *[("ready", 0)] * 3, tenant="new", total=0
    )


def test_a_value_that_cannot_be_opened_is_named_and_the_others_are_done(app: Application) -> None:
    ops, build = app.ops, ("index", "build", "acme", *app.metadata)
    app.break_row(5)
    done = ops.process(*build, code=1)
    assert table_of(done.out) == lines(("building", ROWS - 1), ("ready", ROWS), ("ready", ROWS))
    named, way = done.err.splitlines()
    assert re.match(
        r"pii-vault: tenant 'acme': patients\.email of the row 5: a value of .* does not authenticate", named
    )
    assert way == "pii-vault: what is named stays as it is (mend it or delete it, and run the same command again)"
    (found,) = ops.json("index build", *build[2:], code=1)
    assert (found["complete"], found["failure"]) == (False, None)
    assert [(each["column"], each["key"]) for each in found["problems"]] == [("patients.email", "5")]
    assert "patients.email lack a token" in ops.run("index", "status", "acme", *app.metadata, code=1).err
    with app.engine.begin() as connection:
        connection.execute(text("DELETE FROM patients WHERE id = 5"))
    assert table_of(ops.run(*build).out) == lines(*[("ready", ROWS - 1)] * 3, total=ROWS - 1)


def test_an_index_that_is_declared_in_another_way_is_named_with_what_to_do(local_app: Application) -> None:
    ops = local_app.ops
    ops.run("index", "build", "acme", *local_app.metadata)
    status = ops.run("index", "status", "acme", *local_app.named("Changed"), code=1)
    assert table_of(status.out) == lines(("changed", ROWS), ("ready", ROWS), ("ready", ROWS))
    assert status.err == (
        "pii-vault: tenant 'acme': slot 0 of patients.email holds tokens that were made in another way, and nothing is "
        "found by them (give what is declared now a slot of its own: BlindIndex(slot=…))\n"
    )
    assert ops.json("index status", "acme", *local_app.named("Changed"), code=1)[0]["complete"] is False


def test_values_that_are_written_without_tokens_meanwhile_are_said_to_be(
    local_app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pii_vault.reencryption.indexing.reseal", lambda *_: [])
    done = local_app.ops.run("index", "build", "acme", *local_app.metadata, code=1)
    assert table_of(done.out) == lines(*[("building", 0)] * 3)
    assert done.err == (
        "pii-vault: tenant 'acme': patients.email, patients.phone is not complete: values were written without tokens "
        "meanwhile, or the key store could not be written (let every process declare the tokens, and run the same "
        "command again)\n"
    )


def test_all_tenants_are_done_and_one_that_fails_does_not_keep_the_others(app: Application) -> None:
    ops, build, status = (
        app.ops,
        ("index", "build", "--all", *app.metadata),
        ("index", "status", "--all", *app.metadata),
    )
    dark = ops.kms.new_key()
    ops.run("tenant", "add", "dark", *dark)
    for name in ("glob", "idle"):
        ops.run("tenant", "add", name, *ops.kms.new_key())
    for name in ("dark", "glob", "idle"):
        app.write(name, 2)
    ops.kms.disable(dark[1])
    ops.run("tenant", "suspend", "idle")
    assert len(table_of(ops.run(*status, code=1).out)) == 6
    done = ops.run(*build, code=1)
    complete = lines(*[("ready", ROWS)] * 3) + lines(*[("ready", 2)] * 3, tenant="glob", total=2)
    assert table_of(done.out) == complete
    failed, left_out = done.err.splitlines()
    assert re.match(r"pii-vault: tenant 'dark': .*Disabled", failed)
    assert left_out == "pii-vault: tenant 'idle' is suspended and was left out"
    for command in ("index build", "index status"):
        found = {each["tenant"]: each for each in ops.json(command, "--all", *app.metadata, code=1)}
        assert list(found) == ["acme", "dark", "glob", "idle"]
        assert [each["complete"] for each in found.values()] == [True, False, True, False]
        assert [each["suspended"] for each in found.values()] == [False, False, False, True]
        assert "Disabled" in found["dark"]["failure"]
        assert (found["idle"]["slots"], found["idle"]["failure"], found["glob"]["failure"]) == ([], None, None)
    ops.kms.enable(dark[1])
    assert len(table_of(ops.run(*build).out)) == 9  # a tenant that is suspended is no failure
    ops.run(*status)
    assert "is suspended (resume it first)" in ops.fails("index", "build", "idle", *app.metadata)
    assert app.found(1, "dark") == 1


def test_without_a_tenant_there_is_nothing_to_do(local: Operator) -> None:
    for command in ("status", "build"):
        how = ("index", command, "--all", "--metadata", "pii_vault.keystore.schema:metadata")
        done = local.run(*how)
        assert (done.out, done.err) == ("", "")
        assert "there is no tenant" in local.terminal(*how).text


def test_ctrl_c_says_how_far_it_is_and_the_same_command_goes_on(postgres_app: Application) -> None:
    """Somebody holds a row of the second batch, so that the command waits there."""
    app, ops = postgres_app, postgres_app.ops
    app.write("acme", 3000)
    assert stopped_at_row(app, 2700, "index", "build", "acme", *app.metadata) == (
        "pii-vault: stopped: 2,000 of 3,020 rows of tenant 'acme' are done; the same command goes on from there\n"
    )
    assert app.tokens() == 2000
    shown = ops.terminal("index", "build", "acme", *app.metadata, COLUMNS="120")
    assert shown.code == 0
    assert "1,020 of 1,020" in shown.text
    assert app.tokens() == 3020


def test_a_bar_shows_how_far_it_is_and_a_table_what_came_of_it(local_app: Application) -> None:
    local_app.ops.run("tenant", "add", "[b]{x}\t")
    local_app.write("[b]{x}\t", 3)
    shown = local_app.ops.terminal("index", "build", "--all", *local_app.metadata, COLUMNS="80")
    assert shown.code == 0
    assert re.search(r"patients of acme +━", shown.text)
    assert re.search(r"patients of \[b\]{x}\\t +━", shown.text)
    assert "20 of 20" in shown.text
    assert re.search(r"tenant +column +slot +token +state +have / total", shown.text)
    assert re.search(r"acme +patients\.phone +1 +last4 +ready +20 / 20", shown.text)
    wide = local_app.ops.terminal("index", "status", "acme", *local_app.metadata, COLUMNS="160")
    assert re.search(r"have / total +context +form", wide.text)


# Replacing the index key.


def later(ops: Operator, **delta: int) -> None:
    """Let the index keys have been made, or taken out of use, that much earlier."""
    before = timedelta(**delta)
    with ops.engine.connect() as connection:
        rows = connection.execute(select(keys).where(keys.c.purpose == "index", keys.c.state != "destroyed")).all()
    for row in rows:
        times = {"created_at": row.created_at - before} if row.state == "pre_active" else {}
        if row.state == "deactivated":
            times = {"deactivated_at": row.deactivated_at - before}
        if times:
            mine = (keys.c.purpose == "index", keys.c.version == row.version, keys.c.tenant_uid == row.tenant_uid)
            ops.alter(update(keys).where(*mine).values(**times))


def test_an_index_key_is_replaced_in_three_steps_and_each_says_when_the_next_is(app: Application) -> None:
    ops, rotate = app.ops, ("index", "rotate", "acme", *app.metadata)
    ops.run("index", "build", "acme", *app.metadata)
    app.compares()
    stored, meanwhile, go_on = ops.process(*rotate, "--reason", "INC-4").out.splitlines()
    assert stored == (
        "index key 2 of tenant acme is stored, and index key 1 still makes all tokens: no row has changed"
    )
    assert meanwhile == (
        "meanwhile values are found, and unique ones stay unique; columns are not compared with each other and not "
        "grouped: that raises BlindIndexError until the replacement is finished"
    )
    when = re.fullmatch(
        r"go on from (\S+ \S+) UTC on, when every process holds the new key: run the same command again", go_on
    )
    assert when
    waited = datetime.fromisoformat(f"{when[1]}+00:00") - datetime.now(UTC)
    assert timedelta(minutes=4) < waited < timedelta(minutes=5)
    assert app.found(7) == 1
    with pytest.raises(BlindIndexError, match="index rotate acme"):
        app.compares()
    early = ops.json("index rotate", *rotate[2:])
    assert (early["step"], early["generation"], early["other_generation"], early["rows_left"]) == ("prepared", 1, 2, 0)
    assert early["next_at"].startswith(when[1].replace(" ", "T"))

    later(ops, minutes=6)
    made, still, go_on = ops.run(*rotate).out.splitlines()
    assert made == "index key 2 of tenant acme makes all tokens; no row has tokens of index key 1"
    assert still == meanwhile
    assert re.fullmatch(
        r"go on from .* UTC on, when nobody writes tokens of index key 1 any longer: run the same command again, which "
        r"then destroys index key 1",
        go_on,
    )
    assert app.found(7) == 1
    with pytest.raises(BlindIndexError, match="is being replaced"):
        app.compares()
    waits = ops.json("index rotate", *rotate[2:])
    assert (waits["step"], waits["generation"], waits["other_generation"]) == ("activated", 2, 1)
    assert datetime.fromisoformat(waits["next_at"]) > datetime.now(UTC) + timedelta(hours=23)

    later(ops, days=1)
    finished, backups = ops.run(*rotate).out.splitlines()
    assert finished == (
        "index key 2 of tenant acme makes all tokens, its predecessor is destroyed, and nothing is left to do: the "
        "same command would begin with another key"
    )
    assert backups == (
        "a backup from before holds tokens that nothing is found by any longer: after restoring one, run `pii-vault "
        "index build acme` before anything is searched"
    )
    app.compares()
    assert app.found(7) == 1
    events = [(each["event"], each["reason"]) for each in ops.json("audit log", "acme")]
    assert ("key.created", "INC-4") in events
    assert [event for event, _ in events[-3:]] == ["key.created", "key.activated", "key.destroyed"]


def test_a_finished_replacement_says_so_in_json_too(local_app: Application) -> None:
    ops, rotate = local_app.ops, ("acme", *local_app.metadata)
    ops.json("index rotate", *rotate)
    later(ops, minutes=6)
    ops.json("index rotate", *rotate)
    later(ops, days=1)
    done = ops.json("index rotate", *rotate)
    assert done == {
        "tenant": "acme",
        "step": "finished",
        "generation": 2,
        "other_generation": None,
        "rows_left": 0,
        "next_at": None,
        "problems": [],
    }


def test_tokens_of_a_restored_backup_are_made_anew(app: Application) -> None:
    ops, rotate = app.ops, ("index", "rotate", "acme", *app.metadata)
    ops.run("index", "build", "acme", *app.metadata)
    patients = table("patients", column("id"), column("email", LargeBinary), column("phone", LargeBinary))
    with app.engine.connect() as connection:
        backup = [dict(row) for row in connection.execute(select(patients)).mappings()]
    ops.run(*rotate)
    later(ops, minutes=6)
    ops.run(*rotate)
    later(ops, days=1)
    ops.run(*rotate)
    with app.engine.begin() as connection:
        for row in backup:
            connection.execute(update(patients).where(patients.c.id == row["id"]).values(**row))
    status = ops.run("index", "status", "acme", *app.metadata, code=1)
    assert table_of(status.out) == lines(*[("building", 0)] * 3)
    ops.run("index", "build", "acme", *app.metadata)
    assert table_of(ops.run("index", "status", "acme", *app.metadata).out) == lines(*[("ready", ROWS)] * 3)
    assert app.found(7) == 1


def test_a_value_that_cannot_be_sealed_anew_keeps_the_old_index_key(app: Application) -> None:
    ops, rotate = app.ops, ("index", "rotate", "acme", *app.metadata)
    ops.run("index", "build", "acme", *app.metadata)
    app.break_row(5)
    ops.run(*rotate)
    later(ops, minutes=6)
    done = ops.process(*rotate, code=1)
    assert done.out.splitlines()[0] == (
        "index key 2 of tenant acme makes all tokens; 1 row still has tokens of index key 1"
    )
    assert len(done.out.splitlines()) == 2  # there is no time from when on it would be better
    assert re.match(r"pii-vault: tenant 'acme': patients\.email of the row 5: .* does not authenticate", done.err)
    assert done.err.endswith("(mend it or delete it, and run the same command again)\n")
    found = ops.json("index rotate", *rotate[2:], code=1)
    assert (found["rows_left"], found["next_at"], [each["key"] for each in found["problems"]]) == (1, None, ["5"])
    later(ops, days=2)
    ops.run(*rotate, code=1)
    with app.engine.begin() as connection:
        connection.execute(text("DELETE FROM patients WHERE id = 5"))
    assert ops.json("index rotate", *rotate[2:])["step"] == "finished"


def test_a_replacement_needs_all_columns_that_are_searched(local_app: Application) -> None:
    ops = local_app.ops
    ops.run("index", "build", "acme", *local_app.metadata)
    told = ops.fails("index", "rotate", "acme", *local_app.named("Half"))
    assert "values of 'patient-phone' are searched for tenant 'acme'" in told
    assert "pii-vault index drop acme" in told


def test_ctrl_c_stops_a_replacement_and_the_same_command_goes_on(postgres_app: Application) -> None:
    app, ops, rotate = postgres_app, postgres_app.ops, ("index", "rotate", "acme", *postgres_app.metadata)
    ops.run("index", "build", "acme", *app.metadata)
    ops.run(*rotate)
    later(ops, minutes=6)
    assert stopped_at_row(app, 7, *rotate) == (
        "pii-vault: stopped: 0 of 20 rows of tenant 'acme' are done; the same command goes on from there\n"
    )
    assert app.found(7) == 1
    assert ops.json("index rotate", *rotate[2:])["rows_left"] == 0


# Dropping and planning.


def test_a_slot_is_searched_no_longer(app: Application) -> None:
    ops, drop = app.ops, ("index", "drop", "acme", "patient-phone", "1")
    assert ops.run(*drop).out == ("slot 1 of 'patient-phone' was not searched for tenant acme; no slot is\n")
    ops.run("index", "build", "acme", *app.metadata)
    with pytest.raises(BlindIndexError, match=r"pii-vault index drop acme patients\.email 0"):
        app.write("acme", 1)
    assert ops.run(*drop).out == (
        "slot 1 of 'patient-phone' is searched no longer for tenant acme: values may be written without its token\n"
    )
    assert ops.process(*drop).out == (
        "slot 1 of 'patient-phone' was not searched for tenant acme; searched are slot 0 of 'patient-phone', slot 0 of "
        "'patients.email'\n"
    )
    dropped = {"tenant": "acme", "context": "patient-phone", "slot": 0, "dropped": True}
    assert ops.json("index drop", "acme", "patient-phone", "0") == dropped
    assert ops.json("index drop", "acme", "patient-phone", "0") == {**dropped, "dropped": False}
    ops.run("index", "drop", "acme", "patients.email", "0")
    app.write("acme", 1)
    assert "no tenant 'nobody' is registered" in ops.fails("index", "drop", "nobody", "patients.email", "0")


def test_a_plan_needs_nothing_and_says_what_the_planner_says() -> None:
    done = pii_vault_command("index", "plan", "--rows", "50000")
    assert (done.code, done.err) == (0, "")
    assert done.out == (
        "keep 8 to 15 bits: a lookup finds about 195 to 1.5 rows by chance, which are opened and dropped; fewer bits "
        "tell less\n"
    )
    found = document("index plan", pii_vault_here("index", "plan", "--rows", "50000", "--others", "4", "--json").out)
    assert (found["verdict"], found["minimum"], found["maximum"]) == ("shorten", 4, 11)
    assert (found["rows"], found["distinct"], found["others"]) == (50000, None, 4)


@pytest.mark.parametrize(
    ("options", "verdict", "said"),
    [
        (["--rows", "15"], "few_rows", "fewer than 16 rows hide nothing"),
        (["--rows", "50000", "--distinct", "2"], "few_values", "BlindIndex(low_entropy=True)"),
        (["--rows", "50000", "--others", "128"], "others_tell", "the other tokens of this column tell already"),
        (["--rows", "9223372036854775807"], "shorten", "keep 32 to 62 bits"),
    ],
)
def test_a_plan_says_where_shorter_tokens_do_not_help(options: list[str], verdict: str, said: str) -> None:
    done = pii_vault_here("index", "plan", *options)
    assert (done.code, done.err) == (0, "")
    assert said in done.out
    found = document("index plan", pii_vault_here("index", "plan", *options, "--json").out)
    assert (found["verdict"], f"{found['advice']}\n") == (verdict, done.out)
    assert (found["minimum"] is None) == (verdict != "shorten")


def test_a_terminal_shows_what_each_number_of_bits_costs() -> None:
    shown = pii_vault_on_terminal("index", "plan", "--rows", "50000", NO_COLOR="1", TERM="dumb")
    rows = re.findall(r"^(\d+) +([\d,.]+) *$", shown.replace("\r", ""), re.MULTILINE)
    assert [bits for bits, _ in rows] == [str(each) for each in range(8, 16)]
    assert (rows[0][1], rows[-1][1]) == ("195.3", "1.5")
    assert "bits" not in pii_vault_on_terminal("index", "plan", "--rows", "3", NO_COLOR="1", TERM="dumb").replace(
        "shorter", ""
    )


# What fails.


def test_a_failure_is_one_line_that_names_what_and_the_way_out(
    local_app: Application, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ops, commands = local_app.ops, ("status", "build", "rotate")
    empty = f"sqlite:///{tmp_path / 'empty.sqlite3'}"
    ops.run("tenant", "add", "glob")
    for command in commands:
        told = ops.fails("index", command, "nobody", *local_app.metadata)
        assert "no tenant 'nobody' is registered" in told
        told = ops.fails("index", command, "acme", *local_app.named("Old"))
        assert "no encrypted column of the metadata declares an index or tokens" in told
        assert "is neither a declarative base nor a MetaData" in ops.fails(
            "index", command, "acme", *local_app.named("x")
        )
        told = ops.fails("index", command, "acme", *local_app.metadata, "--application-url", empty)
        assert "table 'patients' cannot be read: OperationalError (the metadata and the database have to be" in told
        assert PASSWORD not in told
        if command != "rotate":
            told = ops.fails("index", command, "--all", *local_app.metadata, PII_VAULT_APPLICATION_URL=empty)
            assert told.startswith("table 'patients' cannot be read")
    ops.alter(delete(keys).where(keys.c.purpose == "index"))
    for command in ("build", "rotate"):
        told = ops.fails("index", command, "acme", *local_app.metadata)
        assert told == "tenant 'acme' has no index key (it gets one when it is rotated: pii-vault key rotate acme)"
