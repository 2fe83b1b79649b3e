"""What verification, anchors and the database find when somebody who owns the database changes the audit log, or the
records that it tells of."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Table, insert, select, text, true, update
from sqlalchemy.exc import DBAPIError
from tests.support.audited import (
    ACTOR,
    IN_ORDER,
    OF_A_TENANT,
    Row,
    assert_in_order,
    change,
    everything,
    found,
    mine,
    put,
    rows,
    uid,
    written,
)
from tests.support.calendar import Calendar
from tests.support.world import World

from pii_vault import Vault
from pii_vault.errors import AuditError, KeyRecordError, KeyStoreError, KmsDeniedError, PiiVaultError
from pii_vault.keystore.schema import application, audit, audit_chains, audit_keys, keks, keys, policies, tenants


@pytest.fixture
def calendar() -> Calendar:
    return Calendar(step=timedelta(seconds=1))


@pytest.fixture
def world(build_world: Callable[..., World], calendar: Calendar) -> World:
    """A world in which acme's log has seven entries, and its second data key is active."""
    world = build_world(actor=ACTOR, now=calendar)
    world.vault.rotate("acme")
    world.vault.suspend("acme", "the invoice is open")
    world.vault.resume("acme")
    assert len(written(world)) == 7
    return world


# What verification finds in the log.


Rows = list[Row]


def _numbered(entries: Rows) -> Rows:
    return [entry | {"seq": number} for number, entry in enumerate(entries, 1)]


def _with(entries: Rows, place: int, **changed: Any) -> Rows:
    return [entry | changed if entry["seq"] == place else entry for entry in entries]


def _moved(entries: Rows, place: int, to: int) -> Rows:
    """The entries of two places exchanged."""
    one, other = entries[place - 1], entries[to - 1]
    return _with(_with(entries, place, entry=other["entry"], mac=other["mac"]), to, entry=one["entry"], mac=one["mac"])


CHANGES_OF_THE_LOG: dict[str, tuple[Callable[[Rows], Rows], int]] = {
    "an actor changed": (lambda log: _with(log, 4, entry=log[3]["entry"].replace("ops@", "eve@")), 4),
    "an entry replaced by another": (lambda log: _with(log, 2, entry=log[5]["entry"]), 2),
    "an entry that is no JSON": (lambda log: _with(log, 3, entry="nothing to see"), 3),
    "a blank more": (lambda log: _with(log, 1, entry=log[0]["entry"] + " "), 1),
    "a MAC changed": (lambda log: _with(log, 5, mac=bytes(32)), 5),
    "the last entry changed": (lambda log: _with(log, 7, entry="{}"), 7),
    "the first left out": (lambda log: log[1:], 1),
    "one left out": (lambda log: log[:2] + log[3:], 3),
    "one left out, the gap closed": (lambda log: _numbered(log[:2] + log[3:]), 3),
    "the last left out": (lambda log: log[:6], 7),
    "the last three left out": (lambda log: log[:4], 5),
    "all left out": (lambda log: [], 1),
    "two exchanged": (lambda log: _moved(log, 3, 6), 3),
    "the last two exchanged": (lambda log: _moved(log, 6, 7), 6),
    "one put in": (lambda log: _numbered([*log[:3], log[1], *log[3:]]), 4),
    "one put in at the front": (lambda log: _numbered([log[6], *log]), 1),
    "one put in behind the end": (lambda log: _numbered([*log, log[5]]), 8),
}


def test_verification_names_the_first_entry_that_is_not_what_was_written(world: World) -> None:
    acme, wrong = uid(world), {}
    original = rows(world.engine, audit, acme)
    for name, (changed, first_bad) in CHANGES_OF_THE_LOG.items():
        put(world, acme, {audit: changed(original)})
        verified = world.vault.audit.verify("acme")
        if verified.first_bad != first_bad or not any(str(first_bad) in problem for problem in verified.problems):
            wrong[name] = verified
        else:
            with pytest.raises(AuditError, match="the audit log of tenant 'acme' is not in order"):
                world.vault.audit.anchor("acme")
        assert found(world, "glob") == IN_ORDER
        put(world, acme, {audit: original})
        assert_in_order(world)
    assert wrong == {}


def test_entries_of_another_tenant_are_not_this_ones(world: World) -> None:
    acme = uid(world)
    others = [row | {"tenant_uid": acme} for row in rows(world.engine, audit, uid(world, "glob"))]
    put(world, acme, {audit: others + rows(world.engine, audit, acme)[3:]})
    assert world.vault.audit.verify("acme").first_bad == 1


def test_a_changed_end_of_the_chain_is_found_and_nothing_is_added_to_it(world: World) -> None:
    acme, wrong = uid(world), {}
    (end,), (other,) = (rows(world.engine, audit_chains, uid(world, name)) for name in ("acme", "glob"))
    for values in (
        {"seq": 6},
        {"seq": 8},
        {"head": bytes(32)},
        {"sealed_key": bytes(60)},
        {"sealed_key": other["sealed_key"]},
        {name: other[name] for name in ("seq", "head", "sealed_key")},
        {"kms_key_arn": world.keys["acme"]},
        {"root": bytes(100)},
        {"root": other["root"]},
    ):
        put(world, acme, {audit_chains: [end | values]})
        try:
            if world.vault.audit.verify("acme").problems == IN_ORDER:
                wrong[str(values)] = "in order"
        except PiiVaultError as error:
            wrong[str(values)] = repr(error)
        if not {"root", "kms_key_arn"} & set(values):
            with pytest.raises(PiiVaultError):
                world.vault.suspend("acme")
        put(world, acme, {audit_chains: [end]})
    assert wrong == {}
    assert_in_order(world)


def test_a_log_without_its_end_is_neither_in_order_nor_begun_anew(world: World) -> None:
    change(world, audit_chains.delete().where(mine(audit_chains, uid(world))))
    assert found(world) != IN_ORDER
    with pytest.raises(PiiVaultError):
        world.vault.suspend("acme")
    assert len(rows(world.engine, audit, uid(world))) == 7


def test_nothing_is_added_where_somebody_else_put_an_entry(world: World) -> None:
    change(world, insert(audit).values(tenant_uid=uid(world), seq=8, entry="{}", mac=bytes(32)))
    before = everything(world)
    for change_keys in (world.vault.suspend, world.vault.rotate, world.vault.deactivate):
        with pytest.raises(PiiVaultError):
            change_keys("acme")
    assert everything(world) == before


@pytest.mark.parametrize("changed", ["no JSON", "no entry", "left out", "put in behind the end"])
def test_a_changed_log_does_not_hide_that_the_kms_refuses(world: World, changed: str) -> None:
    acme = uid(world)
    log = rows(world.engine, audit, acme)
    stored = {
        "no JSON": _with(log, 7, entry="nothing to see"),
        "no entry": _with(log, 7, entry="[]"),
        "left out": log[:6],
        "put in behind the end": _numbered([*log, log[5]]),
    }
    put(world, acme, {audit: stored[changed]})
    world.kms.disable_key(world.keys["acme"])
    with pytest.raises(KmsDeniedError):
        world.vault.rotate("acme")


def test_reading_a_log_names_an_entry_that_says_nothing(world: World) -> None:
    acme = uid(world)
    put(world, acme, {audit: _with(rows(world.engine, audit, acme), 3, entry="nothing to see")})
    with pytest.raises(AuditError, match="entry 3"):
        world.vault.audit.entries("acme")


# What verification finds in the records.


WHEN = datetime(2020, 1, 1, tzinfo=UTC)
WRAPPED = {"encrypted_key", "iv", "activation_mac", "wrapped"}
"""What the log does not hold. A changed one opens nothing: the KMS, or the key above, authenticates it."""

CHANGES_OF_RECORDS: dict[Table, tuple[str, dict[str, Any]]] = {
    keys: (
        "data key version 1: ",
        {
            "state": "compromised",
            "kek_generation": 7,
            "algorithm": 2,
            "commitment": bytes(32),
            "epoch": 9,
            "reason": "scheduled",
            "created_by": "eve@example.com",
            "kms_key_arn": "arn:local:kms:local:000000000000:key/other",
            "kms_key_material_id": "other",
            "created_at": WHEN,
            "activated_at": WHEN,
            "deactivated_at": WHEN,
            "destroyed_at": WHEN,
            "previous_version": 5,
            "due_at": WHEN,
        },
    ),
    keks: (
        "the active KEK: ",
        {
            "generation": 4,
            "algorithm": 2,
            "kms_key_arn": "arn:local:kms:local:000000000000:key/other",
            "role_arn": "arn:aws:iam::111122223333:role/other",
            "external_id": "other",
            "kms_key_material_id": "other",
            "commitment": bytes(32),
            "created_at": WHEN,
            "replica_regions": "eu-central-1",
        },
    ),
    tenants: ("the tenant: ", {"suspended": True, "created_at": WHEN}),
    policies: (
        "the tenant: ",
        {
            "kms_account": "111122223333",
            "kms_region": "eu-west-1",
            "rotation_days": 77,
            "follows_kms": True,
            "ttl_seconds": 43_200,
            "grace_seconds": 600,
            "pii_encryption": False,
        },
    ),
}


@pytest.mark.parametrize("table", CHANGES_OF_RECORDS, ids=lambda table: table.name)
def test_verification_names_the_record_of_which_anything_was_changed(world: World, table: Table) -> None:
    acme, wrong = uid(world), {}
    record, changes = CHANGES_OF_RECORDS[table]
    apart = {"tenant_uid", "uid", "name", "keyset_id", "purpose", "version"}
    apart.add("evicted")  # a number that only makes processes ask the KMS
    assert set(changes) | {"state"} == {column.name for column in table.columns} - WRAPPED - apart | {"state"}
    (original, *others) = rows(world.engine, table, acme)
    column = mine(table, acme) & ((keys.c.version == 1) & (keys.c.purpose == "data") if table is keys else true())
    for name, value in changes.items():
        change(world, update(table).where(column).values({name: value}))
        try:
            problems = found(world)
        except PiiVaultError as error:
            problems = (repr(error),)
        if [problem.startswith(f"{record}{name} is ") for problem in problems] != [True]:
            wrong[name] = problems
        assert found(world, "glob") == IN_ORDER
        change(world, update(table).where(column).values({name: original[name]}))
    assert wrong == {}
    assert rows(world.engine, table, acme) == [original, *others]
    assert_in_order(world)


def test_a_changed_keyset_id_is_found_although_the_first_key_belongs_to_it(world: World) -> None:
    change(world, update(tenants).where(mine(tenants, uid(world))).values(keyset_id=7))
    assert any("keyset" in problem for problem in found(world))
    assert found(world, "glob") == IN_ORDER


def test_a_renamed_tenant_is_named_by_what_it_was(world: World) -> None:
    change(world, update(tenants).where(mine(tenants, uid(world))).values(name="evil"))
    assert found(world, "evil") == ("the tenant: name is evil, the log says acme",)


def test_a_key_record_that_was_deleted_put_in_or_renumbered_is_named(world: World) -> None:
    acme = uid(world)
    saved = {keys: rows(world.engine, keys, acme)}
    first, second, index = saved[keys]
    only_logged, only_stored = "is in the log and not in the key store", "is in the key store and not in the log"
    moved = {"state": "deactivated", "epoch": 0, "activation_mac": b""}
    for stored, problems in (
        ([second, index], [f"data key version 1 {only_logged}"]),
        ([first, index], [f"data key version 2 {only_logged}"]),
        ([first, second], [f"index key version 1 {only_logged}"]),
        ([index], [f"data key version 1 {only_logged}", f"data key version 2 {only_logged}"]),
        ([first, second, index, first | {"version": 3}], [f"data key version 3 {only_stored}"]),
        ([first, second, index, first | {"purpose": "index", "version": 2}], [f"index key version 2 {only_stored}"]),
        (
            [first | {"version": 9}, second, index],
            [f"data key version 1 {only_logged}", f"data key version 9 {only_stored}"],
        ),
        (
            [first, second | moved, index],
            ["data key version 2: state is", "data key version 2: epoch is 0, the log says 2"],
        ),
    ):
        put(world, acme, {keys: stored})
        shown = found(world)
        assert len(shown) == len(problems)
        assert all(each.startswith(problem) for each, problem in zip(shown, problems, strict=True)), shown
        put(world, acme, saved)
    assert_in_order(world)


@pytest.mark.parametrize(("table", "what"), [(keks, "key-encryption key"), (policies, "policy")])
def test_a_deleted_kek_or_policy_is_named_and_its_tenant_still_listed(world: World, table: Table, what: str) -> None:
    change(world, table.delete().where(mine(table, uid(world))))
    assert world.vault.tenants() == ["acme", "glob"]
    assert found(world)[0].startswith(f"tenant 'acme' has no {what}")
    with pytest.raises(KeyRecordError, match=what):
        world.vault.tenant("acme").__enter__()


def test_a_deleted_end_of_the_chain_is_not_taken_for_a_log_that_never_began(world: World) -> None:
    change(world, audit_chains.delete().where(mine(audit_chains, uid(world))))
    assert found(world) == ("the end of the audit log is gone: nothing can be added",)
    with pytest.raises(KeyStoreError, match="tenant 'acme'"):
        world.vault.rotate("acme")


def test_verifying_without_the_audit_key_makes_no_new_one(world: World) -> None:
    change(world, audit_keys.delete())
    fresh = Vault(world.url, kms=world.kms)
    assert list(fresh.audit.verify("acme").problems)
    with world.engine.connect() as connection:
        assert connection.execute(select(audit_keys)).all() == []
    fresh.close()


@pytest.mark.parametrize("act", ["compromised", "replaced", "moved"])
def test_an_older_state_of_a_record_put_back_is_named(world: World, act: str) -> None:
    acme, vault = uid(world), world.vault
    saved = {table: rows(world.engine, table, acme) for table in (policies, keks, keys)}
    if act == "compromised":
        vault.compromise("acme", 1, "a leak")
        expected = "data key version 1: state is deactivated, the log says compromised"
    elif act == "replaced":
        vault.rewrap("acme", to=world.kms.create_key(), new_kek=True)
        expected = "the active KEK: generation is 1, the log says 2"
    else:
        key = world.kms.create_key()
        vault.rewrap("acme", to=key)
        expected = f"the active KEK: kms_key_arn is {world.keys['acme']}, the log says {key}"
    assert_in_order(world)
    put(world, acme, saved)
    assert expected in found(world)
    assert world.vault.audit.verify("acme").first_bad is None


# What only an anchor finds.


def test_an_anchor_finds_a_log_that_was_cut_off_together_with_the_keys(world: World) -> None:
    acme, audit_log = uid(world), world.vault.audit
    saved = {table: rows(world.engine, table, acme) for table in OF_A_TENANT}
    before = audit_log.anchor("acme")
    world.vault.rotate("acme")
    after = audit_log.anchor("acme")
    assert (before.seq, before.version, after.seq, after.version) == (7, 2, 9, 3)
    assert audit_log.verify("acme", before).problems == audit_log.verify("acme", after).problems == IN_ORDER
    put(world, acme, saved)
    assert_in_order(world)
    assert audit_log.verify("acme", before).problems == IN_ORDER
    cut, rolled_back = audit_log.verify("acme", after).problems
    assert "ends at entry 7" in cut
    assert "knows 9: it was cut off" in cut
    assert "is version 2" in rolled_back
    assert "rolled back" in rolled_back


def test_keys_put_back_under_a_log_that_was_not_are_found(world: World) -> None:
    """The end of the chain too, so that all that is left over is the log's newest entries."""
    acme = uid(world)
    saved = {table: rows(world.engine, table, acme) for table in OF_A_TENANT if table is not audit}
    world.vault.rotate("acme")
    put(world, acme, saved)
    verified = world.vault.audit.verify("acme")
    assert verified.problems != IN_ORDER
    assert verified.first_bad == 8


def test_a_log_cut_off_under_keys_that_were_not_is_found(world: World) -> None:
    acme = uid(world)
    saved = {table: rows(world.engine, table, acme) for table in (audit_chains, audit)}
    world.vault.rotate("acme")
    put(world, acme, saved)
    assert "data key version 3 is in the key store and not in the log" in found(world)


def test_an_anchor_finds_a_log_that_was_written_anew(world: World) -> None:
    acme, vault = uid(world), world.vault
    anchor = vault.audit.anchor("acme")
    put(world, acme, {audit_chains: [], audit: []})
    vault.suspend("acme", "nothing to see")
    assert_in_order(world)
    assert "it was cut off" in vault.audit.verify("acme", anchor).problems[0]
    while len(written(world)) < anchor.seq + 3:
        vault.resume("acme")
        vault.suspend("acme")
    assert_in_order(world)
    (problem,) = vault.audit.verify("acme", anchor).problems
    assert problem.startswith("entry 7 is not the one that the anchor of 2026-03-01 12:30 UTC knows")


def test_an_anchor_counts_for_its_tenant_and_application_only(world: World) -> None:
    log = world.vault.audit
    glob, acme = log.anchor("glob"), log.anchor("acme")
    assert (acme.tenant, acme.tenant_uid, glob.tenant) == ("acme", uid(world).hex(), "glob")
    assert "another tenant or application: 'glob'" in log.verify("acme", glob).problems[0]
    for wrong in (replace(acme, application=bytes(16).hex()), replace(acme, tenant_uid=glob.tenant_uid)):
        assert "another tenant or application" in log.verify("acme", wrong).problems[0]


def test_an_anchor_is_the_number_and_the_mac_of_the_last_entry(world: World, calendar: Calendar) -> None:
    anchor = world.vault.audit.anchor("acme")
    last = rows(world.engine, audit, uid(world))[-1]
    assert (anchor.format, anchor.seq, anchor.head, anchor.at) == (1, 7, bytes(last["mac"]).hex(), calendar.now)
    (app,) = rows(world.engine, application)
    assert anchor.application == bytes(app["uid"]).hex()


# What the database refuses.


def test_the_database_refuses_to_change_entries_and_to_turn_a_chain_back(world: World) -> None:
    acme, before = uid(world), everything(world)
    of_log, of_chain = mine(audit, acme), mine(audit_chains, acme)
    statements = [
        update(audit).where(of_log, audit.c.seq == 3).values(entry="{}"),
        update(audit).where(of_log, audit.c.seq == 3).values(mac=bytes(32)),
        update(audit).where(of_log, audit.c.seq == 7).values(seq=9),
        update(audit).where(of_log).values(entry=audit.c.entry),
        audit.delete().where(of_log, audit.c.seq == 7),
        audit_chains.delete().where(of_chain),
        audit_keys.delete(),
        *(update(audit_chains).where(of_chain).values(seq=seq) for seq in (1, 6, 7, 9)),
        update(audit_chains).where(of_chain).values(head=bytes(32)),
        update(audit_chains).where(of_chain).values(seq=8, root=b"x"),
        update(audit_chains).where(of_chain).values(seq=8, kms_key_arn="arn"),
        update(audit_keys).values(commitment=bytes(32)),
        insert(audit_chains).values(
            tenant_uid=bytes(16), kms_key_arn="", root=b"", seq=2, head=bytes(32), sealed_key=bytes(60)
        ),
    ]
    for table in (audit, audit_chains, audit_keys):
        if world.engine.dialect.name == "postgresql":
            statements.append(text(f"TRUNCATE {table.name}"))
        else:
            row = f"SELECT {', '.join(column.name for column in table.columns)} FROM {table.name} LIMIT 1"
            statements.append(text(f"INSERT OR REPLACE INTO {table.name} {row}"))
            statements.append(text(f"REPLACE INTO {table.name} {row}"))
    for statement in statements:
        with pytest.raises(DBAPIError, match="pii_vault: a"), world.engine.begin() as connection:
            connection.execute(statement)
    with pytest.raises(DBAPIError), world.engine.begin() as connection:
        connection.execute(insert(audit).values(tenant_uid=acme, seq=7, entry="{}", mac=bytes(32)))
    assert everything(world) == before
