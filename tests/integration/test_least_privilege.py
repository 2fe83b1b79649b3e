"""What the database roles need, as docs/security.md says, and no more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, String, Table, create_engine, event, inspect, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tests.integration.test_onboardings import ACME
from tests.support.world import World

from pii_vault import EncryptedString, Vault
from pii_vault.errors import KeyLimitError, KeyStoreError, PiiVaultError
from pii_vault.keystore import KeyStore, OnboardingStep, schema
from pii_vault.keystore.upgrade import check, upgrade
from pii_vault.stages import AdoptionRecord, Stage

TABLES = """SELECT CASE schemaname WHEN 'public' THEN tablename ELSE schemaname || '.' || tablename END FROM pg_tables
WHERE tablename LIKE 'pii\\_vault\\_%'"""  # with the underscores of their names


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    email: Mapped[str] = mapped_column(EncryptedString())


class Later(DeclarativeBase):
    """The application once it searches."""


class Searched(Later):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(EncryptedString(index=True))


@pytest.fixture
def world(postgres_url: str, world_on: Callable[..., World]) -> World:
    return world_on(postgres_url, Base.metadata)


@pytest.fixture
def as_role(world: World) -> Iterator[Callable[..., Engine]]:
    """Engines whose connections act as a role with these rights on the key store, and all on the application's."""
    roles, engines = [], []

    def make(*grants: str) -> Engine:
        role = f"least_{world.engine.url.database}_{len(roles)}"
        roles.append(role)
        with world.engine.begin() as connection:
            connection.exec_driver_sql(f'CREATE ROLE "{role}"')
            if inspect(connection).has_table("people"):
                connection.exec_driver_sql(f'GRANT ALL ON people, people_id_seq TO "{role}"')
            names = ", ".join(connection.scalars(text(TABLES)))
            for grant in grants:
                connection.exec_driver_sql(f'GRANT {grant.format(tables=names)} TO "{role}"')
        engine = create_engine(world.url)

        @event.listens_for(engine, "connect")
        def become(connection: Any, _record: Any) -> None:
            connection.execute(f'SET ROLE "{role}"')
            connection.commit()

        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.dispose()
    with world.engine.begin() as connection:
        for role in roles:
            connection.exec_driver_sql(f'DROP OWNED BY "{role}"')
            connection.exec_driver_sql(f'DROP ROLE "{role}"')


def application(world: World, engine: Engine) -> Vault:
    vault = Vault(engine, kms=world.kms)
    vault.attach(engine, tenant_column="tenant_id")
    return vault


def test_an_application_that_reads_needs_only_select(world: World, as_role: Callable[..., Engine]) -> None:
    with world.session() as session:
        session.add(Person(email="ada@example.com"))
    engine = as_role("SELECT ON {tables}")
    vault = application(world, engine)
    with vault.tenant("acme"), Session(engine) as session:
        assert session.scalars(select(Person.email)).all() == ["ada@example.com"]


def test_an_application_that_writes_needs_to_count_besides(world: World, as_role: Callable[..., Engine]) -> None:
    engine = as_role("SELECT ON {tables}", "UPDATE ON pii_vault_key_use")
    vault = application(world, engine)
    with vault.tenant("acme"), Session(engine) as session, session.begin():
        session.add_all(Person(tenant_id="acme", email=f"{number}@example.com") for number in range(3000))
    with pytest.raises(KeyStoreError, match="InsufficientPrivilege"):
        vault.rotate("acme")


def test_whoever_evicts_needs_to_write_two_columns(world: World, as_role: Callable[..., Engine]) -> None:
    evict = ("UPDATE (evicted) ON pii_vault_tenants", "UPDATE (evictions) ON pii_vault_application")
    vault = Vault(as_role("SELECT ON {tables}", *evict), kms=world.kms)
    vault.evict("acme")
    for grants in (evict[:1], evict[1:]):
        lacking = Vault(as_role("SELECT ON {tables}", *grants), kms=world.kms)
        with pytest.raises(KeyStoreError, match="InsufficientPrivilege"):
            lacking.evict("acme")


def test_without_the_right_to_count_an_application_seals_a_bounded_number(
    world: World, as_role: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pii_vault.metering.OVERRUN", 2000)
    engine = as_role("SELECT ON {tables}")
    vault = application(world, engine)
    people = [{"tenant_id": "acme", "email": "a"}] * 3000
    with vault.tenant("acme"), engine.connect() as connection, pytest.raises(KeyLimitError, match="cannot be counted"):
        connection.execute(Person.__table__.insert(), people)  # type: ignore[attr-defined]


def test_what_changes_keys_needs_to_insert_and_update_and_not_to_delete(
    world: World, as_role: Callable[..., Engine]
) -> None:
    engine = as_role("SELECT, INSERT, UPDATE ON {tables}")
    vault = Vault(engine, kms=world.kms)
    vault.add_tenant("new", key=world.kms.create_key())
    assert vault.rotate("new").version == 2
    vault.rewrap("new", to=world.kms.create_key())
    vault.rewrap("new", new_kek=True)
    vault.suspend("new")
    vault.resume("new")
    vault.compromise("new", 1)
    assert vault.audit.verify("new").problems == ()


def test_whoever_completes_indexes_needs_what_the_page_of_the_command_says(
    world: World, as_role: Callable[..., Engine]
) -> None:
    with world.session() as session:
        session.add(Person(email="ada@example.com"))
    build = (
        *("UPDATE (evicted) ON pii_vault_tenants", "UPDATE (evictions) ON pii_vault_application"),
        *("UPDATE ON pii_vault_index_slots", "INSERT ON pii_vault_index_slots", "UPDATE ON pii_vault_key_use"),
    )

    def complete(*grants: str) -> bool:
        engine = as_role("SELECT ON {tables}", *grants)
        vault = Vault(engine, kms=world.kms)
        return vault.build_index("acme", metadata=Later.metadata, engine=engine).complete

    with pytest.raises(KeyStoreError, match=r"InsufficientPrivilege.*docs/security\.md"):
        complete(*build[:3], *build[4:])
    for number in range(3):
        assert not complete(*build[:number], *build[number + 1 :]), build[number]
    assert complete(*build)
    Vault(as_role("SELECT ON {tables}", *build[:3]), kms=world.kms).drop_index("acme", "people.email", 0)
    reader = as_role("SELECT ON {tables}")
    (status,) = Vault(reader, kms=world.kms).index_status("acme", metadata=Later.metadata, engine=reader)
    assert (status.missing, status.total) == (0, 1)


def test_whoever_re_encrypts_needs_to_count_and_whoever_only_looks_to_read(
    world: World, as_role: Callable[..., Engine]
) -> None:
    def left(*grants: str, dry_run: bool = False) -> int:
        engine = as_role("SELECT ON {tables}", *grants)
        vault = Vault(engine, kms=world.kms)
        return vault.reencrypt("acme", metadata=Base.metadata, engine=engine, dry_run=dry_run).left

    with world.session() as session:
        session.add_all(Person(email=f"{number}@example.com") for number in range(3000))
    world.vault.rotate("acme")
    assert left(dry_run=True) == 3000
    assert left("UPDATE ON pii_vault_key_use") == 0


def test_a_dry_run_reckons_the_time_and_needs_to_read_only(world: World, as_role: Callable[..., Engine]) -> None:
    with world.session() as session:
        session.add_all(Person(email=f"{number}@example.com") for number in range(300))
    world.vault.rotate("acme")
    engine = as_role("SELECT ON {tables}")
    with world.engine.begin() as connection:
        role = f"least_{world.engine.url.database}_0"
        connection.exec_driver_sql(f'REVOKE ALL ON people, people_id_seq FROM "{role}"')
        connection.exec_driver_sql(f'GRANT SELECT ON people TO "{role}"')
    engine.dispose()
    vault, before = Vault(engine, kms=world.kms), every_row(world.engine)
    how: dict[str, Any] = {"metadata": Base.metadata, "engine": engine}
    done = vault.reencrypt("acme", **how, dry_run=True)
    assert (done.left, done.problems, done.complete) == (300, (), False)
    assert done.seconds is not None
    assert 0 < done.seconds < 60
    paced = vault.reencrypt("acme", **how, dry_run=True, rate=2).seconds
    assert paced == 150
    assert every_row(world.engine) == before
    with pytest.raises(PiiVaultError, match="InsufficientPrivilege"):
        vault.reencrypt("acme", **how)
    assert every_row(world.engine) == before
    world.vault.reencrypt("acme", metadata=Base.metadata, engine=world.engine)
    assert vault.reencrypt("acme", **how, dry_run=True).seconds == 0
    assert world.vault.reencrypt("acme", metadata=Base.metadata, engine=world.engine).seconds is None


def every_row(engine: Engine) -> dict[str, list[Any]]:
    """Return all that stands in the application's table and in the key store's."""
    with engine.connect() as connection:
        names = ["people", *connection.scalars(text(TABLES))]
        return {
            name: sorted(map(repr, connection.exec_driver_sql(f'SELECT t.*, xmin FROM "{name}" t').all()))
            for name in names
        }


def test_whoever_counts_what_is_sealed_reads_two_tables_of_the_key_store(
    world: World, as_role: Callable[..., Engine]
) -> None:
    with world.session() as session:
        session.add(Person(email="ada@example.com"))
    own = ("SELECT ON pii_vault_tenants", "SELECT ON pii_vault_keys", "SELECT ON pii_vault_revision")
    for role in (as_role("SELECT ON {tables}"), as_role(*own)):
        found = Vault(role, kms=world.kms).coverage(metadata=Base.metadata, engine=role, estimate=True)
        assert [(each.tenant, each.count) for each in found.stored] == [("acme", 1)]


def test_an_application_that_writes_tokens_has_to_be_able_to_say_what_they_are(
    world: World, as_role: Callable[..., Engine]
) -> None:
    numbers = count(100)
    key, owner = Column("id", Integer, primary_key=True), Column("tenant_id", String)
    later = Table("people", MetaData(), key, owner, Column("email", EncryptedString(index=True)))

    def write(*grants: str) -> None:
        engine = as_role("SELECT ON {tables}", "UPDATE ON pii_vault_key_use", "INSERT ON people", *grants)
        vault = Vault(engine, kms=world.kms)
        vault.attach(engine, tenant_column="tenant_id")
        with vault.tenant("acme"), engine.begin() as connection:
            connection.execute(later.insert().values(id=next(numbers), tenant_id="acme", email="ada@example.com"))

    with pytest.raises(KeyStoreError, match="InsufficientPrivilege"):
        write()
    write("INSERT ON pii_vault_index_slots")
    write()  # it stands there by now


def test_whoever_adopts_columns_adds_steps_and_everybody_reads_them(
    world: World, as_role: Callable[..., Engine]
) -> None:
    now = datetime.now(UTC)
    steps = [
        AdoptionRecord("people.email", number, stage, "people", "plain", "email", None, None, now, "operator", "")
        for number, stage in enumerate((Stage.ADDED, Stage.FILLED), 1)
    ]
    reader = KeyStore(as_role("SELECT ON {tables}"))
    operator = KeyStore(as_role("SELECT ON {tables}", "INSERT ON pii_vault_adoptions"))
    for step in steps:
        with pytest.raises(KeyStoreError, match=r"InsufficientPrivilege.*docs/security\.md"):
            reader.add_adoption_step(step)
        operator.add_adoption_step(step)
    assert reader.adoption_steps("people.email") == steps
    assert reader.adoptions() == steps[-1:]
    others = f"SELECT ON {', '.join(set(schema.metadata.tables) - {'pii_vault_adoptions'})}"
    with pytest.raises(KeyStoreError, match=r"InsufficientPrivilege.*docs/security\.md"):
        KeyStore(as_role(others)).adoptions()


def test_whoever_onboards_writes_onboardings_and_the_application_need_not_see_them(
    world: World, as_role: Callable[..., Engine]
) -> None:
    operator = KeyStore(as_role("SELECT ON {tables}", "INSERT, UPDATE ON pii_vault_onboardings"))
    now = datetime.now(UTC)
    begun = operator.onboardings.begin(replace(ACME, begun_at=now, step_at=now))
    operator.onboardings.advance(begun, OnboardingStep.HANDED_OVER, now)
    others = f"SELECT ON {', '.join(set(schema.metadata.tables) - {'pii_vault_onboardings'})}"
    with pytest.raises(KeyStoreError, match=r"InsufficientPrivilege.*docs/security\.md"):
        KeyStore(as_role(others)).onboardings.load("acme")


class TestInASchemaOfItsOwn:
    """The same roles, and USAGE on the schema: without it no right on a table is of any use."""

    @pytest.fixture
    def world(self, postgres_url: str, world_on: Callable[..., World], make_engine: Callable[..., Engine]) -> World:
        upgrade(make_engine(postgres_url), "vault")
        return world_on(postgres_url, Base.metadata, schema="vault")

    def test_every_role_needs_to_use_the_schema(self, world: World, as_role: Callable[..., Engine]) -> None:
        rights = ("SELECT, INSERT, UPDATE ON {tables}", "CREATE ON DATABASE {database}")
        engine = as_role(*(each.replace("{database}", str(world.engine.url.database)) for each in rights))
        with pytest.raises(KeyStoreError, match=r"InsufficientPrivilege.*docs/security\.md"):
            Vault(engine, kms=world.kms, schema="vault").tenants()
        for look in (check, upgrade):
            with pytest.raises(KeyStoreError, match=r"may not use the schema 'vault'.*docs/security\.md"):
                look(engine, "vault")

    def test_an_application_needs_to_read_and_where_it_writes_to_count(
        self, world: World, as_role: Callable[..., Engine]
    ) -> None:
        reader = as_role("USAGE ON SCHEMA vault", "SELECT ON {tables}")
        writer = as_role("USAGE ON SCHEMA vault", "SELECT ON {tables}", "UPDATE ON vault.pii_vault_key_use")
        for engine in (writer, reader):
            vault = Vault(engine, kms=world.kms, schema="vault")
            vault.attach(engine, tenant_column="tenant_id")
            with vault.tenant("acme"), Session(engine) as session, session.begin():
                if engine is writer:
                    session.add_all(Person(tenant_id="acme", email=f"{number}@example.com") for number in range(3000))
                else:
                    assert len(session.scalars(select(Person.email)).all()) == 3000
            assert check(engine, "vault").problems == ()
            with pytest.raises(KeyStoreError, match="InsufficientPrivilege"):
                vault.rotate("acme")

    def test_what_changes_keys_needs_no_more_than_without_one(
        self, world: World, as_role: Callable[..., Engine]
    ) -> None:
        engine = as_role("USAGE ON SCHEMA vault", "SELECT, INSERT, UPDATE ON {tables}")
        vault = Vault(engine, kms=world.kms, schema="vault")
        vault.add_tenant("new", key=world.kms.create_key())
        assert vault.rotate("new").version == 2
        assert vault.audit.verify("new").problems == ()

    def test_an_upgrade_makes_the_schema_if_the_role_may_or_says_who_has_to(
        self, world: World, as_role: Callable[..., Engine]
    ) -> None:
        stranger = as_role()
        with pytest.raises(KeyStoreError, match=r"no schema 'second'.*may not create one.*CREATE SCHEMA \"second\""):
            upgrade(stranger, "second")
        with world.engine.begin() as connection:
            connection.exec_driver_sql("CREATE SCHEMA second")
        used = as_role("USAGE ON SCHEMA second")
        with pytest.raises(KeyStoreError, match="InsufficientPrivilege"):
            upgrade(used, "second")
        owner = as_role("USAGE, CREATE ON SCHEMA second")
        assert upgrade(owner, "second") == schema.REVISION
        maker = as_role(f"CREATE ON DATABASE {world.engine.url.database}")
        assert upgrade(maker, "third") == upgrade(maker, "third") == schema.REVISION
        assert check(maker, "third").problems == ()
