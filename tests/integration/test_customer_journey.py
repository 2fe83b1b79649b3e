"""Two customers in AWS, each with a key and a role in its own account: PostgreSQL, and KMS and STS over HTTP."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pytest
from sqlalchemy import Engine, String, func, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from tests.support.strict_kms import StrictKms

from pii_vault import EncryptedString, Vault
from pii_vault.errors import ConfigurationError, KeyRecordError, KmsDeniedError, KmsError
from pii_vault.keystore.schema import keks, policies, tenants
from pii_vault.kms import KmsKey

_CONTEXT = {
    "pii-vault:format",
    "pii-vault:app",
    "pii-vault:tenant",
    "pii-vault:purpose",
    "pii-vault:record",
}
_CRYPTO = ("GenerateDataKey", "Decrypt", "ReEncrypt")


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    email: Mapped[str] = mapped_column(EncryptedString())


@dataclass
class Application:
    kms: StrictKms
    customers: dict[str, KmsKey]
    vault: Vault
    engine: Engine
    sessions: sessionmaker[Session]

    def add(self, tenant: str, email: str) -> None:
        with self.vault.tenant(tenant), self.sessions.begin() as session:
            session.add(Person(email=email))

    def emails(self, tenant: str) -> list[str]:
        with self.vault.tenant(tenant), self.sessions() as session:
            return list(session.scalars(select(Person.email).where(Person.tenant_id == tenant).order_by(Person.id)))

    def rows(self) -> int:
        with self.engine.connect() as connection:
            return connection.scalar(select(func.count()).select_from(Person)) or 0


@pytest.fixture
def build(
    strict_kms: StrictKms,
    postgres_url: str,
    make_engine: Callable[..., Engine],
) -> Iterator[Callable[..., Application]]:
    vaults: list[Vault] = []

    def build(**options: float) -> Application:
        customers = {
            "acme": strict_kms.customer_key(account="111122223333", region="eu-west-1", external_id="for-acme"),
            "glob": strict_kms.customer_key(account="444455556666", region="us-east-1", external_id="for-glob"),
        }
        vault = Vault(
            postgres_url,
            kms=strict_kms.provider(attempts=1),
            platform_key=strict_kms.platform_key(),
            **options,  # type: ignore[arg-type]
        )
        vaults.append(vault)
        vault.create_all()
        for name, key in customers.items():
            vault.add_tenant(name, key=key.arn, role_arn=key.role_arn, external_id=key.external_id)
        engine = make_engine(postgres_url)
        sessions = sessionmaker(engine)
        vault.attach(engine, sessions, tenant_column="tenant_id")
        Base.metadata.create_all(engine)
        return Application(strict_kms, customers, vault, engine, sessions)

    yield build
    for vault in vaults:
        vault.close()


def test_a_thousand_rows_cost_one_decrypt_while_the_keys_are_cold_and_none_while_they_are_warm(
    build: Callable[..., Application],
) -> None:
    application = build()
    people = [Person(email=f"{number}@example.com") for number in range(1000)]
    with application.kms.counting() as cold, application.vault.tenant("acme"), application.sessions.begin() as session:
        session.add_all(people)
    assert (cold.count("Decrypt"), cold.count("GenerateDataKey")) == (1, 0)
    with application.kms.counting() as warm:
        assert len(application.emails("acme")) == 1000
    assert warm.count() == 0


def test_every_request_names_a_whole_arn_and_holds_five_opaque_entries(build: Callable[..., Application]) -> None:
    application = build()
    vault, kms = application.vault, application.kms
    application.add("acme", "ada@example.com")
    vault.rotate("acme")
    application.add("acme", "bob@example.com")
    assert application.emails("acme") == ["ada@example.com", "bob@example.com"]
    kms.rotate(application.customers["acme"].arn)
    vault.rewrap("acme", dry_run=True)
    vault.rewrap("acme")
    vault.rewrap("acme", new_kek=True)
    vault.validate("acme")
    vault.set_rotation("acme", follows_kms=True)
    vault.rotate_due()
    vault.suspend("acme", "a reason")
    vault.audit.anchor("acme")
    seen = [call for call in kms.calls if call.operation in _CRYPTO]
    assert {call.operation for call in seen} == set(_CRYPTO)
    owners = {customer.arn for customer in application.customers.values()} | {kms.platform_key()}
    purposes = {"kek", "data", "index", "audit", "audit-root"}
    for call in seen:
        assert call.key in owners
        assert set(call.context) == _CONTEXT
        assert call.context["pii-vault:purpose"] in purposes
        same = call.parameters.get("DestinationEncryptionContext", call.context)
        assert same == call.context
        assert all(re.fullmatch(r"[a-z0-9._-]{1,64}", value) for value in call.context.values())
        assert not {"acme", "glob"} & set(call.context.values())


def test_a_key_policy_that_demands_the_tenants_uid_is_enough_for_that_tenant_and_no_other(
    build: Callable[..., Application],
) -> None:
    application = build(ttl=0)
    with application.engine.connect() as connection:
        uids = {row.name: bytes(row.uid) for row in connection.execute(select(tenants.c.name, tenants.c.uid))}
    for name, key in application.customers.items():
        application.kms.put_key_policy(key.arn, {"Statement": []})
        assert key.role_arn is not None
        demanded = {"pii-vault:tenant": uids[name].hex()}
        application.kms.allow(key.arn, key.role_arn, context=demanded, context_keys=_CONTEXT)
    application.add("acme", "ada@example.com")
    # Somebody registers the address of another customer's key, and even says that it is meant.
    stolen = application.customers["glob"]
    add = partial(
        application.vault.add_tenant,
        "eve",
        key=stolen.arn,
        role_arn=stolen.role_arn,
        external_id=stolen.external_id,
    )
    with pytest.raises(ConfigurationError, match="that of tenant 'glob'"):
        add()
    with pytest.raises(KmsDeniedError, match="AccessDeniedException"):
        add(shared_key=True)
    assert application.vault.tenants() == ["acme", "glob"]
    acme, glob = (uids[name] for name in ("acme", "glob"))
    columns = [keks.c.kms_key_arn, keks.c.role_arn, keks.c.external_id, keks.c.wrapped]
    with application.engine.begin() as connection:
        record = connection.execute(select(*columns).where(keks.c.tenant_uid == acme)).mappings().one()
        connection.execute(update(keks).where(keks.c.tenant_uid == glob).values(**record))
    with application.kms.counting() as calls, pytest.raises(KeyRecordError, match="not in account 444455556666"):
        application.emails("glob")
    assert calls.count() == 0
    expected = {"kms_account": "111122223333", "kms_region": "eu-west-1"}
    with application.engine.begin() as connection:
        connection.execute(update(policies).where(policies.c.tenant_uid == glob).values(**expected))
    with pytest.raises(KmsError):
        application.emails("glob")
    assert application.emails("acme") == ["ada@example.com"]


def test_a_customer_that_disables_its_key_goes_dark_alone_and_comes_back(build: Callable[..., Application]) -> None:
    application = build(ttl=0)
    application.add("acme", "ada@example.com")
    application.add("glob", "grace@example.com")
    application.kms.disable(application.customers["acme"].arn)
    with pytest.raises(KmsDeniedError, match="DisabledException"):
        application.emails("acme")
    with pytest.raises(KmsDeniedError):
        application.add("acme", "late@example.com")
    assert application.emails("glob") == ["grace@example.com"]
    assert application.rows() == 2
    application.kms.enable(application.customers["acme"].arn)
    assert application.emails("acme") == ["ada@example.com"]


def test_a_role_that_no_longer_trusts_us_means_no(build: Callable[..., Application]) -> None:
    application = build(ttl=0)
    application.add("acme", "ada@example.com")
    role = application.customers["acme"].role_arn
    assert role is not None
    application.kms.register_role(role, external_id="changed by the customer")
    application.kms.expire_credentials(role)
    with pytest.raises(KmsDeniedError, match="AssumeRole"):
        application.emails("acme")


def test_nothing_of_a_value_is_in_the_database(build: Callable[..., Application]) -> None:
    application = build()
    application.add("acme", "ada@example.com")
    with application.engine.connect() as connection:
        stored = bytes(connection.execute(text("SELECT email FROM people")).scalar_one())
    assert stored[0] == 0xFA
    assert len(stored) == 38 + len("ada@example.com")
    assert b"ada" not in stored
