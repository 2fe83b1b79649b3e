"""Index keys: every tenant has one from the customer's KMS, and its tokens stay the same for as long as it lives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import text, update
from sqlalchemy.exc import IntegrityError
from tests.support.strict_kms import StrictKms
from tests.support.world import World

from pii_vault import Vault, encoding
from pii_vault.blind_index import Form
from pii_vault.encoding import Encoding
from pii_vault.errors import KeyNotFoundError, KeyRecordError
from pii_vault.keys import KeyRecord, KeyState, Purpose
from pii_vault.keystore.schema import keys
from pii_vault.sealing import Keyset

FORM = Form.of(Encoding.of(encoding.TEXT))
CASELESS = Form.of(Encoding.of(encoding.TEXT), normalise=("casefold",))


@pytest.fixture
def world(build_world: Callable[..., World]) -> World:
    return build_world()


def keyset(vault: Vault, tenant: str = "acme") -> Keyset:
    with vault.tenant(tenant) as scope:
        assert scope.keyset is not None
        return scope.keyset


def made(vault: Vault, tenant: str = "acme", index: str = "people.email", form: Form = FORM) -> bytes:
    return keyset(vault, tenant).token(index, form, form.message("ada@example.com"))


def index_keys(vault: Vault, tenant: str = "acme") -> list[KeyRecord]:
    return [key for key in vault._store.load(tenant).keys if key.purpose is Purpose.INDEX]


def test_a_tenant_has_an_index_key_from_the_beginning(world: World) -> None:
    (record,) = index_keys(world.vault)
    assert (record.version, record.state, record.epoch, record.reason) == (1, KeyState.ACTIVE, 1, "initial")
    assert (record.due_at, record.previous_version) == (None, None)
    assert record.kms_key_arn == world.keys["acme"]
    assert keyset(world.vault).index_generation == 1
    assert keyset(world.vault).index_generations == {1}
    assert world.vault.audit.verify("acme").problems == ()
    (added,) = [entry for entry in world.vault.audit.entries("acme") if entry.event == "tenant.added"]
    assert [(key["purpose"], key["state"]) for key in added.details["keys"]] == [("index", "active")]


def test_its_bytes_are_asked_of_the_customers_kms_for_that_purpose(sqlite_url: str, strict_kms: StrictKms) -> None:
    vault = Vault(sqlite_url, kms=strict_kms.provider(), platform_key=strict_kms.platform_key())
    vault.create_all()
    key = strict_kms.customer_key()
    vault.add_tenant("acme", key=key.arn, role_arn=key.role_arn, external_id=key.external_id)
    asked = [call for call in strict_kms.calls if call.operation == "GenerateDataKey" and call.key == key.arn]
    assert [call.context["pii-vault:purpose"] for call in asked] == ["kek", "index", "data"]
    vault.close()


def test_every_process_makes_the_same_token_and_no_two_tenants_columns_or_forms_do(world: World) -> None:
    other = Vault(world.url, kms=world.kms)
    token = made(world.vault)
    assert len(token) == 16
    assert made(other) == token
    others = [made(other, "glob"), made(other, index="people.phone"), made(other, form=CASELESS)]
    assert len({token, *others}) == 4
    other.close()


def test_tokens_outlive_data_keys_and_the_key_encryption_key(world: World) -> None:
    token = made(world.vault)
    world.vault.rotate("acme")
    assert made(world.vault) == token
    world.vault.rewrap("acme", new_kek=True)
    world.vault.evict("acme")
    assert made(world.vault) == token
    world.vault.rewrap("acme", to=world.kms.create_key())
    world.vault.evict("acme")
    assert made(world.vault) == token
    (record,) = index_keys(world.vault)
    assert (record.version, record.kek_generation) == (1, 2)
    assert world.vault.audit.verify("acme").problems == ()


def test_a_tenant_that_is_older_than_index_keys_gets_one_when_it_is_rotated(world: World) -> None:
    with world.engine.begin() as connection:  # as an earlier release left it
        if world.engine.dialect.name == "sqlite":
            for name in ("keys", "key_use"):
                connection.execute(text(f"DROP TRIGGER pii_vault_{name}_delete"))
        else:
            for name in ("keys", "key_use"):
                connection.execute(text(f"ALTER TABLE pii_vault_{name} DISABLE TRIGGER USER"))
        connection.execute(text("DELETE FROM pii_vault_key_use WHERE purpose = 'index'"))
        connection.execute(text("DELETE FROM pii_vault_keys WHERE purpose = 'index'"))
    world.vault.evict("acme")
    assert keyset(world.vault).index_generation == 0
    with pytest.raises(KeyNotFoundError, match=r"tenant 'acme' has no index key \(it gets one when it is rotated"):
        made(world.vault)
    world.vault.rotate("acme")
    assert [(key.version, key.state) for key in index_keys(world.vault)] == [(1, KeyState.ACTIVE)]
    token = made(world.vault)
    world.vault.rotate("acme")
    assert made(world.vault) == token
    assert len(index_keys(world.vault)) == 1


def test_the_database_refuses_a_second_active_one(world: World) -> None:
    columns = "kek_generation, algorithm, encrypted_key, iv, commitment, epoch, activation_mac, reason, created_by"
    more = f"tenant_uid, purpose, {columns}, kms_key_arn, created_at"
    mine = "purpose = 'index' AND tenant_uid = :uid"
    uid = {"uid": world.vault._store.load("acme").tenant.identity.tenant_uid}
    with world.engine.begin() as connection:
        values = f"SELECT 2, 'pre_active', {more} FROM pii_vault_keys WHERE {mine}"
        connection.execute(text(f"INSERT INTO pii_vault_keys (version, state, {more}) {values}"), uid)
    second = text(f"UPDATE pii_vault_keys SET state = 'active' WHERE version = 2 AND {mine}")
    with pytest.raises(IntegrityError), world.engine.begin() as connection:
        connection.execute(second, uid)
    assert [key.state for key in index_keys(world.vault)] == [KeyState.ACTIVE, KeyState.PRE_ACTIVE]


@pytest.mark.parametrize("column", ["encrypted_key", "iv", "commitment", "activation_mac", "epoch"])
def test_a_changed_record_opens_nothing(world: World, column: str) -> None:
    (record,) = index_keys(world.vault)
    value = getattr(record, column)
    changed = value + 1 if isinstance(value, int) else bytes(byte ^ 1 for byte in value)
    with world.engine.begin() as connection:
        if world.engine.dialect.name == "sqlite":
            connection.execute(text("DROP TRIGGER pii_vault_keys_update"))
        else:
            connection.execute(text("ALTER TABLE pii_vault_keys DISABLE TRIGGER USER"))
        connection.execute(update(keys).where(keys.c.purpose == "index").values({column: changed}))
    world.vault.evict("acme")
    with pytest.raises(KeyRecordError):
        keyset(world.vault)
