"""`audit` in commands: the log, its verification, and anchors kept in files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, func, select, update
from tests.support.documents import document
from tests.support.operator import Operator

from pii_vault.audit.facts import Event
from pii_vault.keystore.schema import audit, audit_chains, keys, tenants

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "json.md").read_text("utf-8")


@pytest.fixture
def two(local: Operator) -> Operator:
    """An operator with two tenants, of which the first was rotated once."""
    return with_two_tenants(local)


def with_two_tenants(ops: Operator) -> Operator:
    for name in ("acme", "glob"):
        ops.run("tenant", "add", name, *ops.kms.new_key())
    ops.run("key", "rotate", "acme", "--actor", "ada")
    return ops


def of(name: str) -> Any:
    """The rows of a tenant's log."""
    return audit.c.tenant_uid == select(tenants.c.uid).where(tenants.c.name == name).scalar_subquery()


def anchors(ops: Operator, *names: str) -> str:
    out = ops.run("audit", "anchor", *names).out
    for line in out.splitlines():
        document("audit anchor", line)
    return out


def test_the_log_says_who_did_what_and_to_which_keys(two: Operator) -> None:
    assert two.rows("audit", "log", "acme", "--after", "1")[0][2:] == [
        *("ops@example.com", "key.created", "initial", "data key 1 pre_active")
    ]
    log = two.rows("audit", "log", "acme")
    assert [row[0] for row in log] == ["1", "2", "3", "4", "5"]
    assert log[0][2:] == ["ops@example.com", "tenant.added", "", "KEK 1 active, index key 1 active"]
    assert log[4][2:] == ["ada", "key.activated", "forced", "data key 1 deactivated, data key 2 active"]
    assert [row[0] for row in two.rows("audit", "log", "acme", "--after", "2", "--limit", "2")] == ["3", "4"]
    assert two.rows("audit", "log", "acme", "--after", "99") == []
    found = two.json("audit log", "acme", "--after", "4")
    assert (found[0]["seq"], found[0]["actor"], found[0]["reason"]) == (5, "ada", "forced")


def test_every_detail_of_an_entry_is_described(local: Operator) -> None:
    local.run("tenant", "add", "acme", *local.kms.new_key())
    local.run("tenant", "set", "acme", "--rotation-days", "7")
    local.run("tenant", "suspend", "acme")
    local.run("tenant", "resume", "acme")
    local.run("key", "rotate", "acme")
    local.run("rewrap", "acme", *("--to", local.kms.new_key()[1]))
    local.run("rewrap", "acme", "--new-kek")
    local.run("key", "deactivate", "acme")
    local.run("key", "compromise", "acme", "1", "--yes")
    local.run("tenant", "erase", "acme", "--yes", "--schedule-key-deletion", "7")
    rows = PAGE.partition("### Details of an entry\n")[2].partition("\n## ")[0].splitlines()
    described = {row.split("`")[1]: set(row.split("`")[3::2]) for row in rows if row.startswith("| `")}
    found: dict[str, set[str]] = {}
    log = local.json("audit log", "acme")
    for entry in log:
        for name, about in entry["details"].items():
            for each in about if isinstance(about, list) else [about]:
                found.setdefault(name, set()).update(each)
    assert found == described
    assert {entry["event"] for entry in log} <= set(Event)
    assert len({entry["event"] for entry in log}) == 12


def test_verify_passes_every_log_that_is_as_it_was_written(two: Operator) -> None:
    assert two.rows("audit", "verify") == [["acme", "5", "in order"], ["glob", "3", "in order"]]
    assert two.rows("audit", "verify", "glob") == [["glob", "3", "in order"]]
    assert two.rows("audit", "verify", "glob", "acme", "glob") == [["glob", "3", "in order"], ["acme", "5", "in order"]]


def test_a_changed_entry_is_named_and_the_exit_code_is_1(ops: Operator) -> None:
    two = with_two_tenants(ops)
    entry = audit.c.entry
    two.alter(update(audit).where(of("acme"), audit.c.seq == 3).values(entry=func.replace(entry, "initial", "forced")))
    bad = ["acme", "5", "entry 3 is not what was written there"]
    assert two.rows("audit", "verify", code=1) == [bad, ["glob", "3", "in order"]]
    acme, glob = two.json("audit verify", code=1)
    assert (acme["first_bad"], acme["problems"]) == (3, [bad[2]])
    assert (glob["first_bad"], glob["problems"]) == (None, [])
    assert two.rows("audit", "verify", "glob") == [["glob", "3", "in order"]]


def test_a_changed_key_record_is_found_and_named(two: Operator) -> None:
    two.alter(update(keys).where(keys.c.version == 2).values(reason="scheduled"))
    (found, _) = two.rows("audit", "verify", code=1)
    assert found[2] == "data key version 2: reason is scheduled, the log says forced"


def test_anchors_are_one_line_a_tenant_and_a_later_log_continues_them(ops: Operator, tmp_path: Path) -> None:
    two = with_two_tenants(ops)
    first = anchors(two)
    assert [json.loads(line)["tenant"] for line in first.splitlines()] == ["acme", "glob"]
    assert [json.loads(line)["seq"] for line in first.splitlines()] == [5, 3]
    assert [json.loads(line)["tenant"] for line in anchors(two, "glob", "glob").splitlines()] == ["glob"]
    file = tmp_path / "anchors.json"
    file.write_text(first, "utf-8")
    two.run("key", "rotate", "acme")
    continued = "in order, and it continues the anchor"
    expected = [["acme", "7", continued], ["glob", "3", continued]]
    assert two.rows("audit", "verify", "--anchor", str(file)) == expected
    read = two.run("audit", "verify", "--anchor", "-", stdin=first).out
    assert [line.split("\t") for line in read.splitlines()] == expected
    assert two.rows("audit", "verify", "glob", "--anchor", str(file)) == expected[1:]


def test_a_log_that_was_cut_off_is_found_only_against_an_anchor(local: Operator, tmp_path: Path) -> None:
    local.run("tenant", "add", "acme")
    before = _rows(local)
    local.run("key", "rotate", "acme")
    file = tmp_path / "anchors.json"
    file.write_text(anchors(local), "utf-8")
    _put_back(local, before)
    assert local.rows("audit", "verify") == [["acme", "3", "in order"]]
    found = [row[2] for row in local.rows("audit", "verify", "--anchor", str(file), code=1)]
    assert [finding.partition(", the anchor of ")[0] for finding in found] == [
        "the log ends at entry 3",
        "the newest data key is version 1",
    ]
    assert local.json("audit verify", "--anchor", str(file), code=1)[0]["first_bad"] is None


def test_a_log_that_is_not_in_order_gets_no_anchor_and_the_others_do(two: Operator) -> None:
    two.alter(delete(audit).where(of("acme"), audit.c.seq == 2))
    done = two.run("audit", "anchor", code=1)
    assert [json.loads(line)["tenant"] for line in done.out.splitlines()] == ["glob"]
    assert done.err.startswith("pii-vault: the audit log of tenant 'acme' is not in order: entry 2 ")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "holds no anchor"),
        (b"\n  \n", "holds no anchor"),
        (b"{}\n", "line 1 of {file} is not an anchor"),
        (b"\n[]\n", "line 2 of {file} is not an anchor"),
        (b"no json\n", "line 1 of {file} is not an anchor"),
        (b"\xff\xfe\n", "cannot be read: it is not UTF-8"),
        (b'{"format":1}\n', "line 1 of {file} is not an anchor"),
        ("format 2", "line 1 of {file} is not an anchor"),
        ("another tenant only", "has no anchor of tenant 'acme'"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_bad_anchor_file_is_one_line(
    local: Operator, tmp_path: Path, content: bytes | str | None, reason: str
) -> None:
    local.run("tenant", "add", "acme")
    local.run("tenant", "add", "glob")
    file = tmp_path / "anchors.json"
    if content == "format 2":
        content = anchors(local).replace('"format":1', '"format":2').encode()
    elif content == "another tenant only":
        content = anchors(local, "glob").encode()
    if content is not None:
        assert isinstance(content, bytes)
        file.write_bytes(content)
    told = local.fails("audit", "verify", "acme", "--anchor", str(file))
    assert reason.format(file=file) in told
    if content is not None:
        told = local.fails("audit", "verify", "acme", "--anchor", "-", stdin=content)
        assert reason.format(file="standard input") in told


def test_an_anchor_of_another_application_is_no_anchor_of_this_one(local: Operator, tmp_path: Path) -> None:
    local.run("tenant", "add", "acme")
    anchor = {**json.loads(anchors(local)), "application": "00" * 16}
    told = local.run("audit", "verify", "--anchor", "-", stdin=json.dumps(anchor) + "\n", code=1).out
    assert told == "acme\t3\tthe anchor is of another tenant or application: 'acme'\n"


def test_the_log_of_a_tenant_that_is_older_than_it_begins_with_the_next_change(local: Operator) -> None:
    local.run("tenant", "add", "acme")
    local.alter(delete(audit), delete(audit_chains))
    assert local.run("audit", "log", "acme").out == ""
    assert local.rows("audit", "verify", code=1) == [
        ["acme", "0", "there is no audit log: it begins with the tenant's next change"]
    ]
    assert "there is no audit log" in local.run("audit", "anchor", code=1).err
    local.run("tenant", "suspend", "acme")
    assert [row[3] for row in local.rows("audit", "log", "acme")] == ["chain.begun", "tenant.suspended"]
    assert local.rows("audit", "verify") == [["acme", "2", "in order"]]


def test_reading_the_log_needs_no_kms_and_verifying_only_the_platforms(ops: Operator, tmp_path: Path) -> None:
    two = with_two_tenants(ops)
    for each in two.json("tenant list"):
        two.kms.disable(each["kms_key_arn"])
    assert [row[2] for row in two.rows("audit", "verify")] == ["in order", "in order"]
    two.kms.disable(two.kms.platform_key)
    assert "DisabledException" in two.fails("audit", "verify")
    assert len(two.rows("audit", "log", "acme")) == 5
    assert "the audit log cannot be written" in two.fails(
        "tenant", "suspend", "acme", PII_VAULT_PLATFORM_KEY="", PII_VAULT_KMS="aws"
    )


def _tables() -> Iterator[Any]:
    yield from (keys, audit, audit_chains)


def _rows(ops: Operator) -> dict[Any, list[dict[str, Any]]]:
    with ops.engine.connect() as connection:
        return {each: [dict(row) for row in connection.execute(select(each)).mappings()] for each in _tables()}


def _put_back(ops: Operator, saved: dict[Any, list[dict[str, Any]]]) -> None:
    for each, found in saved.items():
        ops.alter(delete(each), *(each.insert().values(row) for row in found))
