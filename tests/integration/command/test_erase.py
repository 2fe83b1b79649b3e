"""`tenant erase`: what it asks, prints and writes, and what every other command says afterwards."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from tests.support.application import ROWS, Application
from tests.support.documents import document
from tests.support.operator import LocalKeys, Operator

from pii_vault.cli import new_file

ERASE = ("tenant", "erase", "acme")
QUESTION = "Type acme to go on: "
ERASED = "tenant 'acme' is erased: its keys are destroyed, and nothing opens what they sealed"


def is_erased(ops: Operator) -> bool:
    return bool(ops.json("tenant show", "acme")["erased"])


@pytest.fixture
def acme(local: Operator) -> Operator:
    local.run("tenant", "add", "acme", *local.kms.new_key())
    return local


# What it tells.


def test_the_report_tells_everything_and_can_be_checked(app: Application, tmp_path: Path) -> None:
    ops = app.ops
    ops.run("index", "build", "acme", *app.metadata)
    ops.run("key", "rotate", "acme")
    key = ops.json("tenant show", "acme")
    keys = ops.json("key list", "acme")
    report = tmp_path / "erasure.json"
    told = ops.json("tenant erase", "acme", "--yes", "--reason", "INC-12", *app.metadata, "--report", str(report))
    assert document("tenant erase", report.read_text("utf-8")) == told
    assert stat.S_IMODE(report.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir() if "erasure" in each.name] == ["erasure.json"]

    for name in ("uid", "application", "keyset_id"):
        assert told[name] == key[name]
    assert (told["tenant"], told["dry_run"], told["made"]) == ("acme", False, True)
    assert (told["actor"], told["reason"]) == ("ops@example.com", "INC-12")
    assert [(each["kind"], each["version"], each["state_before"]) for each in told["keys"]] == [
        ("kek", 1, "active"),
        *(("data", each["version"], each["state"]) for each in keys),
        ("index", 1, "active"),
    ]
    (involved,) = told["kms_keys"]
    assert involved["kms_key_arn"] == key["kms_key_arn"]
    assert involved["owner"] == ("ours" if isinstance(ops.kms, LocalKeys) else "customer")
    assert involved["advice"] in told["meaning"]
    assert told["looked_into_tables"] is True
    assert {each["column"]: (each["values"], each["with_tokens"]) for each in told["remains"]} == {
        "email": (ROWS, ROWS),
        "phone": (ROWS, ROWS),
    }

    (entry,) = [each for each in ops.json("audit log", "acme") if each["event"] == "tenant.erased"]
    assert (entry["seq"], entry["at"], entry["reason"]) == (told["audit_entry"], told["erased_at"], "INC-12")
    assert entry["details"]["erasure"]["eviction"] == told["eviction"]
    assert json.loads(told["anchor"])["head"] == told["audit_head"]
    anchors = tmp_path / "anchors.json"
    anchors.write_text(told["anchor"] + "\n", "utf-8")
    assert ops.json("audit verify", "acme", "--anchor", str(anchors))[0]["problems"] == []
    anchors.write_text(told["anchor"].replace(told["audit_head"], "00" * 32), "utf-8")
    assert ops.json("audit verify", "acme", "--anchor", str(anchors), code=1)[0]["problems"] != []
    assert [each["tenant"] for each in ops.json("audit verify")] == ["acme"]

    again = ops.json("tenant erase", "acme", *app.metadata)
    assert again == {**told, "made": False}


def test_what_a_person_reads(acme: Operator) -> None:
    planned = acme.run(*ERASE, "--dry-run").out
    assert planned.startswith("tenant acme would be erased: all of these keys would be destroyed\n")
    assert "\ndata\t1\tactive\tnone\t" in planned
    assert not is_erased(acme)
    said = acme.run(*ERASE, "--yes", "--reason", "INC-13").out
    assert said.startswith("tenant acme is erased\ntenant uid ")
    assert "\nreason          INC-13\n" in said
    for part in (
        "All keys are destroyed in the live key store.",
        "Backups of the key store from before hold the wrapped keys",
        "It is our own and has to be deleted",
        "Search tokens that are left in the application's rows stay comparable with each other",
        "Nobody looked into the application's tables: --metadata counts what is left there.",
    ):
        assert part in said
    again = acme.run(*ERASE).out
    assert again.startswith("tenant acme was erased already; this is what was done then\n")
    assert again.partition("\n")[2] == said.partition("\n")[2]


# What it asks.


@pytest.mark.parametrize(("answer", "code"), [("acme\n", 0), ("yes\n", 1), ("\x04", 1), ("\x03", 130)])
def test_only_the_tenants_name_goes_on(acme: Operator, answer: str, code: int) -> None:
    shown = acme.terminal(*ERASE, question=QUESTION, answer=answer)
    assert shown.code == code
    assert "All 3 keys of tenant acme will be destroyed.\n" in shown.text
    assert "Traceback" not in shown.text
    assert is_erased(acme) is (code == 0)


def test_without_a_terminal_it_is_not_done_unasked(acme: Operator) -> None:
    assert "give --yes" in acme.fails(*ERASE, code=2)
    assert not is_erased(acme)
    acme.run(*ERASE, "--yes")
    acme.run(*ERASE)  # nothing is to be asked any more


# What it writes.


def test_a_report_is_never_written_over_a_file_and_that_is_known_before(acme: Operator, tmp_path: Path) -> None:
    there, link, folder = tmp_path / "there.json", tmp_path / "link.json", tmp_path / "missing" / "report.json"
    there.write_text("mine", "utf-8")
    link.symlink_to(tmp_path / "nowhere")
    for file in (there, link, tmp_path):
        told = acme.fails(*ERASE, "--yes", "--report", str(file))
        assert told == f"{file} is there already (a report is not written over a file: name another)"
    assert acme.fails(*ERASE, "--yes", "--report", str(folder)) == (
        f"{folder} cannot be written: No such file or directory (name another file)"
    )
    assert not is_erased(acme)
    assert there.read_text("utf-8") == "mine"
    assert "--report tells what was done" in acme.fails(*ERASE, "--dry-run", "--report", "x.json", code=2)


def test_a_file_that_came_meanwhile_stays_and_the_report_can_be_had_again(
    acme: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, fsync = tmp_path / "report.json", os.fsync

    def late(descriptor: int) -> None:
        fsync(descriptor)
        report.write_text("somebody else's", "utf-8")

    for link in (os.link, None):
        report.unlink(missing_ok=True)
        with monkeypatch.context() as patched:
            patched.setattr(new_file.os, "fsync", late)
            if link is None:  # a file system without links
                patched.setattr(new_file.os, "link", not_permitted)
            done = acme.run(*ERASE, "--yes", "--report", str(report), code=1)
        assert done.err.startswith(f"pii-vault: the keys are destroyed, but the report was not written: {report} is")
        assert "is erased" in done.out or "was erased already" in done.out
        assert report.read_text("utf-8") == "somebody else's"
    report.unlink()
    monkeypatch.setattr(new_file.os, "link", not_permitted)
    acme.run(*ERASE, "--report", str(report))
    assert document("tenant erase", report.read_text("utf-8"))["made"] is False
    assert stat.S_IMODE(report.stat().st_mode) == 0o600
    assert sorted(each.name for each in tmp_path.iterdir() if "report" in each.name) == ["report.json"]


def not_permitted(*_: Any) -> None:
    raise PermissionError(1, "Operation not permitted")


def test_what_is_wrong_with_the_tables_is_known_before(acme: Operator) -> None:
    for place in ("no.such.module:Base", "pii_vault.keystore.schema:metadata"):
        acme.fails(*ERASE, "--yes", "--metadata", place)
    assert not is_erased(acme)


# The KMS key.


def test_the_kms_key_is_deleted_only_where_it_is_ours(ops: Operator) -> None:
    ops.run("tenant", "add", "acme", *ops.kms.new_key())
    if isinstance(ops.kms, LocalKeys):
        told = ops.json("tenant erase", "acme", "--yes", "--schedule-key-deletion", "7")
        assert told["kms_keys"][0]["deleted_at"] is not None
        assert told["key_deletion_failure"] is None
        assert ops.rows("audit", "log", "acme")[-1][3:] == [
            "kms.deletion_scheduled",
            "",
            told["kms_keys"][0]["kms_key_arn"],
        ]
    else:
        told = ops.fails(*ERASE, "--yes", "--schedule-key-deletion", "7")
        assert "is the customer's, and only the customer can delete it" in told
        assert not is_erased(ops)
    ops.run("tenant", "add", "glob")
    assert "which is not deleted" in ops.fails("tenant", "erase", "glob", "--yes", "--schedule-key-deletion", "7")
    assert "Invalid value for '--schedule-key-deletion'" in ops.fails(
        *ERASE, "--yes", "--schedule-key-deletion", "6", code=2
    )
    assert ops.json("tenant erase", "glob", "--yes")["kms_keys"][0]["owner"] == "platform"


def test_a_deletion_that_is_refused_is_told_and_undoes_nothing(acme: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    from pii_vault.kms.aws_errors import kms_error
    from pii_vault.kms.local import LocalKms

    def refuse(_: LocalKms, arn: str, pending_days: int = 30) -> None:
        raise kms_error("AccessDeniedException", "ScheduleKeyDeletion", arn)

    monkeypatch.setattr(LocalKms, "schedule_key_deletion", refuse)
    done = acme.run(*ERASE, "--yes", "--schedule-key-deletion", "7", code=1)
    assert done.out.startswith("tenant acme is erased\n")
    assert done.err.startswith("pii-vault: the keys are destroyed, but not the KMS key: ScheduleKeyDeletion with KMS")
    assert is_erased(acme)
    monkeypatch.undo()
    told = acme.json("tenant erase", "acme", "--schedule-key-deletion", "7")
    assert (told["made"], told["key_deletion_failure"]) == (False, None)
    assert told["kms_keys"][0]["deleted_at"] is not None


# Afterwards.


def test_every_other_command_says_so_or_leaves_it_out_with_a_word(app: Application) -> None:
    ops, tables = app.ops, app.metadata
    ops.run("tenant", "add", "glob")
    ops.run(*ERASE, "--yes")
    for command in (
        ("tenant", "add", "acme"),
        ("tenant", "set", "acme", "--ttl", "60"),
        ("tenant", "set", "acme", "--rotation-days", "60"),
        ("tenant", "suspend", "acme"),
        ("tenant", "resume", "acme"),
        ("key", "validate", "acme"),
        ("key", "rotate", "acme"),
        ("key", "deactivate", "acme"),
        ("key", "compromise", "acme", "1", "--yes"),
        ("key", "destroy", "acme", "1", "--yes", *tables),
        ("rewrap", "acme"),
        ("reencrypt", "acme", *tables),
        ("index", "build", "acme", *tables),
        ("index", "rotate", "acme", *tables),
        ("index", "drop", "acme", "patients.email", "0"),
    ):
        assert ERASED in ops.fails(*command), command
    left_out = "pii-vault: tenant 'acme' is erased and was left out\n"
    for command in (
        ("index", "status", "--all", *tables),
        ("index", "build", "--all", *tables),
        ("reencrypt", "--all", *tables),
        ("rewrap", "--all"),
    ):
        assert ops.run(*command).err == left_out, command
    for name in ("index status", "index build", "reencrypt"):
        assert [each["tenant"] for each in ops.json(name, "--all", *tables)] == ["glob"]
    assert ops.run("rotate", "--due").out == ""
    assert {each["name"]: each["erased"] for each in ops.json("tenant list")} == {"acme": True, "glob": False}
    assert [row[:2] for row in ops.rows("tenant", "list")] == [["acme", "erased"], ["glob", "in use"]]
    shown = ops.run("tenant", "show", "acme").out
    assert "erased: its keys are destroyed" in shown
    assert {each["state"] for each in ops.json("key list", "acme")} == {"destroyed"}
    assert ops.json("kms cost", "--processes", "2")[0]["tenants"] == 1
    covered = ops.json("coverage", "acme", *tables, code=1)
    assert {each["state"] for each in covered["values"]} == {"destroyed"}
    assert [each["problems"] for each in ops.json("audit verify")] == [[], []]
    assert len(ops.run("audit", "anchor").out.splitlines()) == 2


def test_it_works_after_the_customer_has_shut_its_kms_key(ops: Operator) -> None:
    key = ops.kms.new_key()
    ops.run("tenant", "add", "acme", *key)
    ops.kms.disable(key[1])
    ops.run(*ERASE, "--yes")
    assert is_erased(ops)
