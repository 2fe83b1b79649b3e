"""`rewrap` in commands: one tenant and many, what is printed and promised, and what stopping half-way leaves."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import func, select
from tests.support.command import pii_vault_process
from tests.support.operator import Operator

from pii_vault.keystore.schema import audit

MANY = 12


def to(key: list[str]) -> list[str]:
    """A key as options of `rewrap`."""
    return ["--to", *key[1:]]


def lies_under(ops: Operator, name: str) -> str:
    found: str = ops.json("tenant show", name)["kms_key_arn"]
    return found


def test_a_tenant_is_moved_to_another_kms_key_and_the_report_says_what_holds(ops: Operator) -> None:
    old, new = ops.kms.new_key(), ops.kms.new_key()
    ops.kms.let_move(old, new)
    ops.run("tenant", "add", "acme", *old)
    planned = ops.run("rewrap", "acme", *to(new), "--dry-run").out.splitlines()
    assert planned[1] == "would be        re-encrypted"
    assert lies_under(ops, "acme") == old[1]
    said = ops.run("rewrap", "acme", *to(new), "--reason", "INC-3").out.splitlines()
    assert said[:5] == [
        "tenant          acme",
        "was             re-encrypted",
        "KEK generation  1",
        f"KMS key         {new[1]}",
        f"before          {old[1]}",
    ]
    assert said[5].startswith("The same key-encryption key is wrapped anew. Backups of the key store open with the old")
    assert len(said) == 6
    assert ops.json("tenant show", "acme")["role_arn"] == (new[3] if len(new) > 2 else None)
    assert ops.json("audit log", "acme")[-1]["reason"] == "INC-3"
    ops.kms.disable(old[1])
    assert {row[1] for row in ops.rows("key", "validate", "acme")} == {"ok"}
    assert ops.json("audit verify")[0]["problems"] == []


def test_newer_material_of_the_same_kms_key_is_taken_once(ops: Operator) -> None:
    key = ops.kms.new_key()
    ops.run("tenant", "add", "acme", *key)
    before = ops.json("tenant show", "acme")["kms_key_material_id"]
    said = ops.run("rewrap", "acme").out
    assert "was             unchanged\n" in said
    assert "Nothing was to be done" in said
    ops.kms.rotate(key[1])
    done = ops.json("rewrap", "acme")
    assert (done["way"], done["previous_kms_key_arn"], done["dry_run"]) == ("re_encrypted", key[1], False)
    assert done["kms_key_material_id"] == ops.json("tenant show", "acme")["kms_key_material_id"] != before
    assert ops.json("rewrap", "acme")["way"] == "unchanged"


def test_a_new_key_encryption_key_opens_what_the_old_one_did(ops: Operator) -> None:
    key = ops.kms.new_key()
    ops.run("tenant", "add", "acme", *key)
    ops.run("key", "rotate", "acme")
    planned = ops.json("rewrap", "acme", "--new-kek", "--dry-run")
    assert (planned["way"], planned["dry_run"], planned["kek_generation"]) == ("new_kek", True, 2)
    assert ops.json("tenant show", "acme")["kek_generation"] == 1
    done = ops.json("rewrap", "acme", "--new-kek")
    assert (done["way"], done["kek_generation"]) == ("new_kek", 2)
    assert done["promise"].startswith("The key-encryption key is new, the data keys are the same.")
    assert {row[1] for row in ops.rows("key", "validate", "acme")} == {"ok"}
    assert [each["kek_generation"] for each in ops.json("key list", "acme")] == [2, 2]


def test_a_tenant_brings_its_own_key_and_leaves_it_again(ops: Operator) -> None:
    key = ops.kms.new_key()
    ops.run("tenant", "add", "acme")
    how = ["--new-kek"]  # no role of ours may use both keys
    said = ops.run("rewrap", "acme", *to(key), *how).out
    assert "The old KMS key is the platform's and lives on for other tenants" in said
    assert lies_under(ops, "acme") == key[1]
    ops.run("rewrap", "acme", "--to-platform", *how)
    assert lies_under(ops, "acme") == ops.kms.platform_key


def test_another_tenants_kms_key_is_refused_unless_it_is_said_to_be_shared(local: Operator) -> None:
    mine, theirs = local.kms.new_key(), local.kms.new_key()
    local.kms.let_move(mine, theirs)
    local.run("tenant", "add", "acme", *mine)
    local.run("tenant", "add", "glob", *theirs)
    assert "--shared-key" in local.fails("rewrap", "acme", *to(theirs))
    assert lies_under(local, "acme") == mine[1]
    local.run("rewrap", "acme", *to(theirs), "--shared-key")
    assert lies_under(local, "acme") == theirs[1]


def test_a_refusal_leaves_the_old_wrapping_and_is_one_line(local: Operator) -> None:
    old, new = local.kms.new_key(), local.kms.new_key()
    local.run("tenant", "add", "acme", *old)
    local.kms.disable(new[1])
    assert "is Disabled" in local.fails("rewrap", "acme", *to(new))
    assert "is Disabled" in local.fails("rewrap", "acme", *to(new), "--dry-run")
    assert lies_under(local, "acme") == old[1]


def test_all_are_re_wrapped_and_one_that_fails_does_not_keep_the_others(ops: Operator) -> None:
    assert ops.run("rewrap", "--all").out == "there is no tenant to re-wrap\n"
    own = {name: ops.kms.new_key() for name in ("acme", "dark", "glob")}
    for name, key in own.items():
        ops.run("tenant", "add", name, *key)
        ops.kms.rotate(key[1])
    ops.kms.disable(own["dark"][1])
    all_of_them = ("rewrap", "--all", "--workers", "1")
    planned = ops.run(*all_of_them, "--dry-run", code=1).out.splitlines()
    assert planned[1] == "2 would be re-encrypted, 1 failed"
    assert ops.json("rewrap --all", "--dry-run", code=1)[0]["dry_run"] is True
    failed, counts, promise = ops.run(*all_of_them, code=1).out.splitlines()
    assert failed.startswith("dark\t")
    assert "is Disabled" in failed
    assert counts == "2 re-encrypted, 1 failed"
    assert promise.startswith("The same key-encryption key is wrapped anew. Backups of the key store open as before")
    acme, dark, glob = ops.json("rewrap --all", "--workers", "1", code=1)
    assert (acme["way"], dark["way"], glob["way"]) == ("unchanged", None, "unchanged")
    assert (acme["failure"], glob["failure"]) == (None, None)
    assert "is Disabled" in dark["failure"]
    ops.kms.enable(own["dark"][1])
    assert ops.run(*all_of_them).out.startswith("2 unchanged, 1 re-encrypted\n")
    assert ops.run(*all_of_them).out == "3 unchanged\n"


def test_only_those_under_one_kms_key_are_moved(postgres: Operator) -> None:
    first, other, target = (postgres.kms.new_key()[1] for _ in range(3))
    for name, key in {"a": first, "b": first, "c": other}.items():
        postgres.run("tenant", "add", name, "--key", key, "--shared-key")
    move = ("rewrap", "--all", "--from", first, "--to", target)
    assert "--shared-key" in postgres.fails(*move)
    assert postgres.run(*move, "--shared-key").out.startswith("2 re-encrypted\nThe same key-encryption key is")
    under = {each["name"]: each["kms_key_arn"] for each in postgres.json("tenant list")}
    assert under == {"a": target, "b": target, "c": other}
    assert postgres.run(*move).out == "there is no tenant to re-wrap\n"
    assert postgres.run("rewrap", "--all", "--from", target, "--to-platform").out.startswith("2 re-encrypted\n")
    renewed = postgres.run("rewrap", "--all", "--from", other, "--new-kek").out
    assert renewed.startswith("1 new kek\nThe key-encryption key is new, the data keys are the same.")


def test_a_bar_shows_how_far_it_is_on_a_terminal_only(local: Operator) -> None:
    for name in ("a", "b"):
        local.run("tenant", "add", name)
    local.kms.rotate(local.kms.platform_key)
    assert local.process("rewrap", "--all", "--dry-run", "--workers", "1").err == ""
    shown = local.terminal("rewrap", "--all", "--workers", "1", COLUMNS="80")
    assert shown.code == 0
    assert "re-wrapping ━" in shown.text
    assert "2/2" in shown.text
    assert "2 re-encrypted\nThe same key-encryption key is wrapped anew." in shown.text


@pytest.fixture
def many(postgres: Operator) -> Operator:
    """An operator with many tenants, whose KMS key has newer material."""
    for number in range(MANY):
        postgres.run("tenant", "add", f"tenant-{number:02}")
    postgres.kms.rotate(postgres.kms.platform_key)
    return postgres


def re_wrapped(ops: Operator) -> int:
    with ops.engine.connect() as connection:
        statement = select(func.count()).select_from(audit).where(audit.c.entry.contains('"kek.rewrapped"'))
        return int(connection.scalar(statement) or 0)


def stopped(ops: Operator, number: signal.Signals) -> tuple[subprocess.Popen[str], str, str]:
    """Start to re-wrap all, slowly, and send a signal as soon as some are done."""
    process = pii_vault_process("rewrap", "--all", "--rate", "6", "--workers", "2", **ops.settings)
    wait_until(lambda: re_wrapped(ops) >= 3 or process.poll() is not None)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    ops.outputs += [out, err]
    return process, out, err


def wait_until(reached: Callable[[], Any]) -> None:
    limit = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < limit
        time.sleep(0.02)


def goes_on(ops: Operator) -> None:
    """The same command does the rest, and nothing twice; every log is in order."""
    done = re_wrapped(ops)
    assert 3 <= done < MANY
    counts = ops.run("rewrap", "--all").out.splitlines()[0]
    assert sorted(counts.split(", ")) == sorted([f"{MANY - done} re-encrypted", f"{done} unchanged"])
    assert re_wrapped(ops) == MANY
    assert [each for each in ops.json("audit verify") if each["problems"]] == []


def test_ctrl_c_finishes_what_is_under_way_and_the_same_command_goes_on(many: Operator) -> None:
    process, out, err = stopped(many, signal.SIGINT)
    assert (process.returncode, out) == (130, "")
    said = re.fullmatch(r"pii-vault: stopped: (\d+) of 12 tenants are done; the same command goes on from there\n", err)
    assert said, err
    assert int(said[1]) == re_wrapped(many)
    goes_on(many)


def test_sigterm_leaves_whole_tenants_and_the_same_command_goes_on(many: Operator) -> None:
    process, out, err = stopped(many, signal.SIGTERM)
    assert (process.returncode, out, err) == (-signal.SIGTERM, "", "")
    goes_on(many)


def test_ctrl_c_says_when_the_same_command_would_begin_anew(many: Operator) -> None:
    process = pii_vault_process("rewrap", "--all", "--new-kek", "--rate", "3", **many.settings)

    def replaced() -> bool:
        with many.engine.connect() as connection:
            return bool(connection.scalar(select(audit.c.seq).where(audit.c.entry.contains('"kek.replaced"')).limit(1)))

    wait_until(lambda: replaced() or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.endswith("; the same command begins with all of them\n")
