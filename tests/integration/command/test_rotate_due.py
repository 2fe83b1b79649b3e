"""`rotate --due` from a scheduler and by hand: what it does, prints, and exits with."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import select, update
from tests.support.command import pii_vault_process
from tests.support.operator import Operator

from pii_vault.keystore.schema import keys, tenants

DAY = timedelta(days=1)


def let_be_due(ops: Operator, *names: str, within: timedelta = -DAY) -> str:
    """Move the day on which tenants' keys are due; return it."""
    when = datetime.now(UTC) + within
    of_these = keys.c.tenant_uid.in_(select(tenants.c.uid).where(tenants.c.name.in_(names)))
    ops.alter(update(keys).where(of_these, keys.c.purpose == "data").values(due_at=when))
    return f"{when:%Y-%m-%d}"


def states(ops: Operator, name: str) -> list[str]:
    return [each["state"] for each in ops.json("key list", name)]


def test_nothing_due_prints_nothing_into_a_pipe_and_says_so_on_a_terminal(local: Operator) -> None:
    assert local.run("rotate", "--due").out == ""
    local.run("tenant", "add", "acme")
    for arguments in (["rotate", "--due"], ["rotate", "--due", "--dry-run"]):
        done = local.process(*arguments)
        assert (done.out, done.err) == ("", "")
    assert local.json("rotate --due") == []
    shown = local.terminal("rotate", "--due")
    assert shown.code == 0
    assert shown.text.endswith("nothing is due\n")
    assert "tenant" not in shown.text


def test_what_is_due_is_rotated_and_the_rest_is_left_alone(ops: Operator) -> None:
    for name in ("acme", "glob", "init"):
        ops.run("tenant", "add", name, *ops.kms.new_key(), "--rotation-days", "30")
    let_be_due(ops, "acme", "init")
    month = f"{datetime.now(UTC) + 30 * DAY:%Y-%m-%d}"
    assert ops.rows("rotate", "--due") == [
        ["acme", "rotated", "scheduled", "2", month],
        ["init", "rotated", "scheduled", "2", month],
    ]
    assert {each["name"]: each["key_version"] for each in ops.json("tenant list")} == {"acme": 2, "glob": 1, "init": 2}
    assert ops.rows("rotate", "--due") == []


def test_a_dry_run_says_what_would_be_done_and_does_nothing(local: Operator) -> None:
    local.run("tenant", "add", "acme", *local.kms.new_key())
    local.run("tenant", "add", "glob", *local.kms.new_key())
    yesterday, soon = let_be_due(local, "acme"), let_be_due(local, "glob", within=5 * DAY)
    dry_run = ("rotate", "--due", "--dry-run", "--ahead", "7")
    assert local.rows(*dry_run) == [
        ["acme", "rotated", "scheduled", "1", yesterday],
        ["glob", "prepared", "scheduled", "1", soon],
    ]
    found = local.json("rotate --due", *dry_run[2:])
    assert [(each["step"], each["dry_run"], each["reason"], each["version"]) for each in found] == [
        ("rotated", True, "scheduled", 1),
        ("prepared", True, "scheduled", 1),
    ]
    assert states(local, "acme") == states(local, "glob") == ["active"]


def test_the_next_key_is_stored_ahead_and_takes_over_on_its_day(local: Operator) -> None:
    local.run("tenant", "add", "acme", *local.kms.new_key())
    soon = let_be_due(local, "acme", within=5 * DAY)
    assert local.rows("rotate", "--due") == []
    assert local.rows("rotate", "--due", "--ahead", "7") == [["acme", "prepared", "scheduled", "1", soon]]
    assert states(local, "acme") == ["active", "pre_active"]
    (found,) = local.json("rotate --due", "--ahead", "7")
    assert (found["step"], found["reason"], found["problem"]) == ("not_due", None, None)
    assert local.rows("rotate", "--due", "--ahead", "7") == []
    let_be_due(local, "acme")
    assert local.rows("rotate", "--due")[0][:4] == ["acme", "rotated", "scheduled", "2"]
    assert states(local, "acme") == ["deactivated", "active"]


def test_a_tenant_that_fails_gives_exit_code_1_and_the_others_are_done(ops: Operator) -> None:
    key = ops.kms.new_key()
    ops.run("tenant", "add", "acme", *ops.kms.new_key())
    ops.run("tenant", "add", "dark", *key)
    ops.run("tenant", "add", "glob", *ops.kms.new_key())
    let_be_due(ops, "acme", "dark", "glob")
    ops.kms.disable(key[1])
    done = ops.run("rotate", "--due", code=1)
    first, failed, last = (line.split("\t") for line in done.out.splitlines())
    assert (first[:2], last[:2]) == (["acme", "rotated"], ["glob", "rotated"])
    assert (failed[:2], failed[3:]) == (["dark", "failed"], ["none", "none"])
    assert "DisabledException" in failed[2]
    assert done.err == ""  # one customer is no hint at ourselves
    (found,) = ops.json("rotate --due", code=1)
    assert (found["step"], found["denied"], found["reason"]) == ("failed", True, None)
    assert (found["version"], found["due_at"]) == (None, None)
    assert "DisabledException" in found["problem"]
    ops.kms.enable(key[1])
    assert ops.rows("rotate", "--due")[0][:2] == ["dark", "rotated"]


def test_many_refusals_at_once_point_at_our_own_role(local: Operator) -> None:
    arns = []
    for name in ("a", "b", "c"):
        key = local.kms.new_key()
        local.run("tenant", "add", name, *key)
        arns.append(key[1])
    let_be_due(local, "a", "b", "c")
    for arn in arns:
        local.kms.disable(arn)
    done = local.run("rotate", "--due", code=1)
    assert [line.split("\t")[1] for line in done.out.splitlines()] == ["failed"] * 3
    assert done.err == "pii-vault: 3 customers refuse at once: look at our own role and its permissions first\n"
    assert local.run("rotate", "--due", "--dry-run").err == ""


def test_suspended_tenants_and_those_without_an_active_key_are_skipped_and_named(local: Operator) -> None:
    local.run("tenant", "add", "dark", *local.kms.new_key())
    local.run("tenant", "add", "idle", *local.kms.new_key())
    let_be_due(local, "dark", "idle")
    local.run("tenant", "suspend", "dark")
    local.run("key", "deactivate", "idle")
    dark, idle = local.rows("rotate", "--due")
    assert dark[:4] == ["dark", "skipped", "suspended", "1"]
    assert idle == ["idle", "skipped", "no active key: rotate it by hand", "none", "none"]
    found = local.json("rotate --due")
    assert [(each["step"], each["reason"], each["problem"]) for each in found] == [
        ("skipped", None, "suspended"),
        ("skipped", None, "no active key: rotate it by hand"),
    ]


def test_a_follower_is_rotated_when_its_kms_key_was(ops: Operator) -> None:
    key = ops.kms.new_key()
    ops.run("tenant", "add", "acme", *key, "--follow-kms")
    assert ops.rows("rotate", "--due") == []
    ops.kms.rotate(key[1])
    assert ops.rows("rotate", "--due")[0][:4] == ["acme", "rotated", "kms-rotation", "2"]
    assert ops.rows("rotate", "--due") == []


def test_two_that_run_at_once_make_one_version(postgres: Operator) -> None:
    for name in ("a", "b", "c", "d"):
        postgres.run("tenant", "add", name)
    let_be_due(postgres, "a", "b", "c", "d")
    both = [pii_vault_process("rotate", "--due", **postgres.settings) for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
    for name in ("a", "b", "c", "d"):
        assert states(postgres, name) == ["deactivated", "active"]
    assert {each["first_bad"] for each in postgres.json("audit verify")} == {None}


def test_a_bar_shows_how_far_it_is_on_a_terminal_only(local: Operator) -> None:
    for name in ("a", "b"):
        local.run("tenant", "add", name)
    let_be_due(local, "a", "b")
    assert local.process("rotate", "--due", "--dry-run").err == ""
    shown = local.terminal("rotate", "--due", COLUMNS="80")
    assert shown.code == 0
    assert "rotating ━" in shown.text
    assert "2/2" in shown.text
    head, *table = [line.split() for line in shown.text.splitlines()[-3:]]
    assert head == ["tenant", "was", "why", "version", "due"]
    assert [row[:4] for row in table] == [["a", "rotated", "scheduled", "2"], ["b", "rotated", "scheduled", "2"]]


def test_an_error_of_the_key_store_itself_is_one_line(local: Operator, tmp_path: Any) -> None:
    told = local.fails("rotate", "--due", PII_VAULT_DATABASE_URL=f"sqlite:///{tmp_path / 'empty.sqlite3'}")
    assert "pii-vault db upgrade" in told
