"""What is arranged with customers before their first keys exist: stored once, and its identity never changes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, insert, text
from sqlalchemy.exc import IntegrityError

from pii_vault import LocalKms, Vault
from pii_vault.errors import KeyStoreError
from pii_vault.keystore import KeyStore, OnboardingRecord, OnboardingStep, Way, schema
from pii_vault.keystore.onboardings import Onboardings

NOW = datetime(2026, 11, 27, 12, 0, 0, 250000, tzinfo=UTC)
ACME = OnboardingRecord(
    tenant_name="acme",
    tenant_uid=b"\x01" * 16,
    keyset_id=0xFFFFFFFF,
    external_id="made-at-random",
    way=Way.CREATED,
    direct=False,
    kms_partition="aws",
    kms_account="111122223333",
    kms_region="eu-west-1",
    kms_key_arn=None,
    runtime_role="arn:aws:iam::999999999999:role/runtime",
    rotation_role="arn:aws:iam::999999999999:role/rotation",
    provisioning_role="arn:aws:iam::999999999999:role/provisioning",
    rotation_days=365,
    step=OnboardingStep.BEGUN,
    begun_at=NOW,
    begun_by="operator",
    step_at=NOW,
)
KEY = "arn:aws:kms:eu-west-1:111122223333:key/12345678-1234-1234-1234-123456789012"
LATER = NOW + timedelta(days=1)


@pytest.fixture
def engine(database_url: str, make_engine: Callable[..., Engine], tmp_path: Path) -> Engine:
    engine = make_engine(database_url)
    vault = Vault(engine, kms=LocalKms(tmp_path / "kms.json"))
    vault.create_all()
    vault.close()
    return engine


@pytest.fixture
def onboardings(engine: Engine) -> Onboardings:
    return KeyStore(engine).onboardings


def test_it_is_stored_as_it_was_begun(onboardings: Onboardings) -> None:
    assert onboardings.load("acme") is None
    assert onboardings.begin(ACME) == ACME
    assert onboardings.load("acme") == ACME
    assert onboardings.load("ACME") is None


def test_begun_again_the_first_identity_stays(onboardings: Onboardings) -> None:
    onboardings.begin(ACME)
    other = replace(ACME, tenant_uid=b"\x02" * 16, keyset_id=7, external_id="another", kms_region="eu-north-1")
    assert onboardings.begin(other) == ACME


def test_begun_at_once_all_have_one_identity(engine: Engine) -> None:
    stores = [KeyStore(engine) for _ in range(4)]
    records = [replace(ACME, tenant_uid=bytes([each]) * 16, keyset_id=each) for each in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda store, record: store.onboardings.begin(record), stores, records))
    assert len({each.tenant_uid for each in found}) == 1


@pytest.mark.parametrize("taken", [{"keyset_id": 7}, {"tenant_uid": b"\x02" * 16}], ids=["keyset id", "uid"])
def test_an_identity_is_one_onboardings_alone(onboardings: Onboardings, taken: dict[str, object]) -> None:
    onboardings.begin(ACME)
    other = {"keyset_id": ACME.keyset_id, "tenant_uid": ACME.tenant_uid, **taken}
    with pytest.raises(KeyStoreError, match="made at random"):
        onboardings.begin(replace(ACME, tenant_name="glob", **other))  # type: ignore[arg-type]
    assert [each.tenant_name for each in onboardings.all()] == ["acme"]


def test_it_advances_from_the_step_that_it_is_at(onboardings: Onboardings) -> None:
    onboardings.begin(ACME)
    made = onboardings.advance(ACME, OnboardingStep.MADE, LATER, kms_key_arn=KEY)
    assert made == replace(ACME, step=OnboardingStep.MADE, step_at=LATER, kms_key_arn=KEY) == onboardings.load("acme")
    earlier = (ACME, replace(made, step=OnboardingStep.PROVEN), replace(made, kms_key_arn=None))
    for before in (*earlier, replace(made, kms_key_arn=f"{KEY[:-1]}9"), replace(made, tenant_name="glob")):
        with pytest.raises(KeyStoreError, match="not at"):
            onboardings.advance(before, OnboardingStep.REGISTERED, LATER)
    assert onboardings.load("acme") == made


def test_of_two_who_advance_it_at_once_one_does(engine: Engine) -> None:
    stores = [KeyStore(engine) for _ in range(4)]
    stores[0].onboardings.begin(ACME)

    def advance(store: KeyStore) -> bool:
        try:
            store.onboardings.advance(ACME, OnboardingStep.HANDED_OVER, LATER)
        except KeyStoreError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(advance, stores)) == [False, False, False, True]


@pytest.mark.parametrize(
    "changed",
    [
        {"tenant_uid": b"\x02" * 16},
        {"keyset_id": 7},
        {"external_id": "another"},
        {"tenant_name": "other"},
        {"rotation_days": 89},
        {"rotation_days": 2561},
        {"way": "bought"},
    ],
    ids=str,
)
def test_what_was_handed_over_stays_and_the_rest_stays_possible(
    onboardings: Onboardings, changed: dict[str, object]
) -> None:
    onboardings.begin(ACME)
    with pytest.raises(KeyStoreError, match="refuses a change"):
        onboardings.advance(ACME, OnboardingStep.BEGUN, LATER, **changed)
    assert onboardings.load("acme") == ACME


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM pii_vault_onboardings",
        "UPDATE pii_vault_onboardings SET external_id = 'of whoever wrote this'",
        "UPDATE pii_vault_onboardings SET step = 'somewhere'",
    ],
)
def test_no_row_is_deleted_or_given_another_identity(engine: Engine, onboardings: Onboardings, statement: str) -> None:
    onboardings.begin(ACME)
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(text(statement))
    assert onboardings.load("acme") == ACME


@pytest.mark.parametrize(
    "column", [{"tenant_uid": b"short"}, {"keyset_id": 2**32}, {"keyset_id": -1}, {"tenant_name": ""}], ids=str
)
def test_an_identity_that_is_none_is_not_stored(engine: Engine, column: dict[str, object]) -> None:
    row = {name: getattr(ACME, name) for name in schema.onboardings.c.keys()} | column  # noqa: SIM118 - not a dict
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(insert(schema.onboardings).values(row))
