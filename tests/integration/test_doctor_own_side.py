"""The doctor and our own side: every check red once and green once, on real databases."""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import AsyncAdaptedQueuePool, Column, Engine, Integer, MetaData, String, Table, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker
from tests.support.urls import async_urls
from tests.support.world import World

from pii_vault import EncryptedString, LocalKms, Vault
from pii_vault.doctor import own_side
from pii_vault.doctor.findings import Finding, Group, Verdict
from pii_vault.errors import ConfigurationError, KeyStoreError

PASSED, FAILED, WARNING = Verdict.PASSED, Verdict.FAILED, Verdict.WARNING


class Base(DeclarativeBase):
    pass


class Patient(Base):
    __tablename__ = "patients"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    email: Mapped[str | None] = mapped_column(EncryptedString(index=True))
    note: Mapped[str | None] = mapped_column("remark", EncryptedString())


class NoTenantBase(DeclarativeBase):
    pass


class Visit(NoTenantBase):
    __tablename__ = "visits"
    id: Mapped[int] = mapped_column(primary_key=True)
    reason: Mapped[str | None] = mapped_column(EncryptedString())


ALL = (
    *("key-store", "clock", "terms", "cryptography", "core-dumps"),
    *("engine", "hide-parameters", "engine-log", "pool", "sessions", "tenant-column", "column-types", "plaintext"),
)


def ours(vault: Vault, **named: Any) -> dict[str, Finding]:
    found = [each for each in vault.doctor("acme", **named) if each.group is Group.OURS]
    assert len({each.check for each in found}) == len(found)
    for each in found:
        assert bool(each.change) or each.verdict not in (FAILED, WARNING), each
    return {each.check: each for each in found}


@pytest.fixture
def world(build_world: Callable[..., World]) -> World:
    return build_world(Base.metadata)


@pytest.fixture
def engine(world: World, make_engine: Callable[..., Engine]) -> Engine:
    """The application's engine as it should be."""
    made = make_engine(world.url, hide_parameters=True)
    world.vault.attach(made, tenant_column="tenant_id")
    return made


def checked(world: World, engine: Any, **named: Any) -> dict[str, Finding]:
    return ours(world.vault, **{"metadata": Base.metadata, "engine": engine, "sessions": world.sessions, **named})


def test_an_application_in_order_passes_every_check(world: World, engine: Engine) -> None:
    with world.session() as session:
        session.add(Patient(email="ada@example.com", note=None))
    found = checked(world, engine)
    assert tuple(found) == ALL
    assert {each.verdict for each in found.values()} <= {PASSED, Verdict.INFO, Verdict.NOT_CHECKED}
    not_checked = [name for name, each in found.items() if each.verdict is Verdict.NOT_CHECKED]
    assert not_checked == (["clock"] if engine.dialect.name == "sqlite" else [])


def test_what_is_not_named_is_said_not_to_be_checked(world: World) -> None:
    found = ours(world.vault)
    unchecked = {name: str(each.change) for name, each in found.items() if each.verdict is Verdict.NOT_CHECKED}
    assert set(unchecked) - {"clock"} == {"engine", "sessions", "columns"}
    assert "--engine" in unchecked["engine"]
    assert "--session" in unchecked["sessions"]
    assert "--metadata" in unchecked["columns"]
    more = ours(world.vault, metadata=Base.metadata)
    assert {more[name].verdict for name in ("tenant-column", "column-types", "plaintext")} == {Verdict.NOT_CHECKED}


# The engine.


def test_an_engine_that_is_not_attached_fails(world: World, make_engine: Callable[..., Engine]) -> None:
    found = checked(world, make_engine(world.url, hide_parameters=True))
    assert found["engine"].verdict is FAILED
    assert "vault.attach(engine)" in str(found["engine"].change)
    assert found["tenant-column"].verdict is Verdict.NOT_CHECKED


def test_an_engine_that_shows_parameters_fails(world: World) -> None:
    found = checked(world, world.engine)
    assert found["hide-parameters"].verdict is FAILED
    assert "hide_parameters=True" in str(found["hide-parameters"].change)


@pytest.fixture
def debug_logger() -> Iterator[None]:
    logger = logging.getLogger("sqlalchemy.engine")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler := logging.NullHandler())
    yield
    logger.setLevel(level)
    logger.removeHandler(handler)


def test_an_engine_that_echoes_rows_fails(world: World, make_engine: Callable[..., Engine]) -> None:
    loud = make_engine(world.url, hide_parameters=True, echo="debug")
    assert checked(world, loud)["engine-log"].verdict is FAILED
    assert checked(world, make_engine(world.url, hide_parameters=True, echo=True))["engine-log"].verdict is PASSED


def test_a_logger_at_debug_fails(world: World, engine: Engine, debug_logger: None) -> None:
    found = checked(world, engine)["engine-log"]
    assert found.verdict is FAILED
    assert "sqlalchemy.engine" in str(found.change)


def test_the_pool_is_told_about(world: World, engine: Engine, make_engine: Callable[..., Engine]) -> None:
    if engine.dialect.name == "sqlite":
        assert checked(world, engine)["pool"].change is None
        return
    assert "pool_pre_ping" in str(checked(world, engine)["pool"].change)
    assert checked(world, make_engine(world.url, pool_pre_ping=True))["pool"].change is None
    assert checked(world, make_engine(world.url, pool_recycle=600))["pool"].change is None


# The sessions.


def test_sessions_that_are_not_attached_fail(world: World, engine: Engine) -> None:
    for target in (sessionmaker(engine), Session, scoped_session(sessionmaker(engine)), async_sessionmaker()):
        assert checked(world, engine, sessions=target)["sessions"].verdict is FAILED, target
    with Session(engine) as session:
        assert checked(world, engine, sessions=session)["sessions"].verdict is FAILED


def test_sessions_that_are_attached_pass_whatever_their_kind(world: World, engine: Engine) -> None:
    class Own(AsyncSession):
        pass

    makers: list[Any] = [sessionmaker(engine), async_sessionmaker(), Own]
    makers += [scoped_session(sessionmaker(engine)), async_scoped_session(async_sessionmaker(), lambda: 1)]
    for target in makers:
        world.vault.attach(target, tenant_column="tenant_id")
        assert checked(world, engine, sessions=target)["sessions"].verdict is PASSED, target


def test_looking_at_sessions_attaches_nothing(world: World, engine: Engine) -> None:
    maker = async_sessionmaker()
    before = dict(maker.kw)
    checked(world, engine, sessions=maker)
    assert maker.kw == before


def test_sessions_of_another_vault_or_on_another_engine_fail(
    world: World, engine: Engine, make_engine: Callable[..., Engine]
) -> None:
    other = Vault(world.url, kms=world.kms)
    maker = sessionmaker(engine)
    other.attach(maker, tenant_column="tenant_id")
    assert checked(world, engine, sessions=maker)["sessions"].verdict is FAILED
    other.close()
    bound = sessionmaker(make_engine(world.url))
    world.vault.attach(bound, tenant_column="tenant_id")
    found = checked(world, engine, sessions=bound)["sessions"]
    assert found.verdict is FAILED
    assert "bound to is not" in found.finding


def test_something_else_than_an_engine_or_sessions_is_refused(world: World, engine: Engine) -> None:
    with pytest.raises(ConfigurationError, match="is no engine"):
        checked(world, "sqlite://")
    with pytest.raises(ConfigurationError, match="cannot be attached"):
        checked(world, engine, sessions=object())


# The tables.


def test_a_table_without_the_tenant_column_fails(world: World, engine: Engine) -> None:
    NoTenantBase.metadata.create_all(engine)
    found = checked(world, engine, metadata=NoTenantBase.metadata)["tenant-column"]
    assert found.verdict is FAILED
    assert "visits" in found.finding


def test_without_a_tenant_column_nobody_compares(world: World, make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(world.url, hide_parameters=True)
    world.vault.attach(engine)
    assert checked(world, engine)["tenant-column"].verdict is WARNING
    single = Vault(world.url, kms=world.kms, default_tenant="acme")
    only = make_engine(world.url, hide_parameters=True)
    single.attach(only)
    assert ours(single, metadata=Base.metadata, engine=only)["tenant-column"].verdict is PASSED
    single.close()


def test_a_table_that_is_missing_fails(world: World, engine: Engine) -> None:
    found = checked(world, engine, metadata=NoTenantBase.metadata)
    assert found["columns"].verdict is FAILED
    assert "visits.reason" in found["columns"].finding
    assert found["plaintext"].verdict is Verdict.NOT_MADE


def test_metadata_without_an_encrypted_column_fails(world: World, engine: Engine) -> None:
    plain = MetaData()
    Table("plain", plain, Column("id", Integer, primary_key=True))
    assert checked(world, engine, metadata=plain)["columns"].verdict is FAILED


def test_a_column_that_is_not_for_bytes_is_named(world: World, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE patients"))
        connection.execute(text("CREATE TABLE patients (id INTEGER, tenant_id TEXT, email TEXT, remark VARCHAR(64))"))
    found = checked(world, engine)["column-types"]
    assert found.verdict is (WARNING if engine.dialect.name == "sqlite" else FAILED)
    assert "patients.email is TEXT" in found.finding
    assert "patients.remark is VARCHAR(64)" in found.finding
    assert "BYTEA" in str(found.change)


def test_a_column_that_is_too_short_is_named_with_the_bytes_that_fit(
    sqlite_url: str, mariadb_url: str, world_on: Callable[..., World], make_engine: Callable[..., Engine]
) -> None:
    world = world_on(mariadb_url, key_store_url=sqlite_url)
    engine = make_engine(mariadb_url, hide_parameters=True)
    world.vault.attach(engine, tenant_column="tenant_id")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE patients (id INT, tenant_id TEXT, email VARBINARY(54), remark BLOB)"))
    found = checked(world, engine)["column-types"]
    assert found.verdict is FAILED
    assert "patients.email is VARBINARY(54): no sealed value fits" in found.finding
    assert "patients.remark is BLOB: no value of more than 65497 bytes fits" in found.finding
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE patients MODIFY email VARBINARY(64), MODIFY remark LONGBLOB"))
    assert checked(world, engine)["column-types"].finding.endswith(
        "patients.email is VARBINARY(64): no value of more than 10 bytes fits, sealed"
    )
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE patients MODIFY email LONGBLOB"))
    assert checked(world, engine)["column-types"].verdict is PASSED


def test_plaintext_in_an_encrypted_column_fails(world: World, engine: Engine) -> None:
    kind = "BYTEA" if engine.dialect.name == "postgresql" else "BLOB"
    with engine.begin() as connection:
        insert = f"INSERT INTO patients (tenant_id, email) VALUES ('acme', CAST('ada@example.com' AS {kind}))"
        connection.execute(text(insert))
    found = checked(world, engine)["plaintext"]
    assert found.verdict is FAILED
    assert "1 in patients.email never sealed" in found.finding
    assert "ada" not in found.finding + str(found.change)
    assert "pii-vault coverage" in str(found.change)


def test_values_under_compromised_keys_are_a_warning(world: World, engine: Engine) -> None:
    with world.session() as session:
        session.add(Patient(email="ada@example.com", note="x"))
    assert "closed-values" not in checked(world, engine)
    world.vault.rotate("acme")
    world.vault.compromise("acme", 1)
    found = checked(world, engine)
    assert found["closed-values"].verdict is WARNING
    assert found["plaintext"].verdict is PASSED


# Asynchronous engines.


def test_an_asynchronous_engine_is_looked_at_in_a_loop_of_its_own(
    world: World, make_async_engine: Callable[..., AsyncEngine]
) -> None:
    for url in async_urls(world.url):
        engine = make_async_engine(url, hide_parameters=True)
        sessions = async_sessionmaker(engine)
        world.vault.attach(engine, sessions, tenant_column="tenant_id")
        found = checked(world, engine, sessions=sessions)
        for name in ("engine", "hide-parameters", "sessions", "tenant-column", "column-types", "plaintext"):
            assert found[name].verdict is PASSED, (url, found[name])


def test_a_loop_that_runs_keeps_its_connections(world: World, make_async_engine: Callable[..., AsyncEngine]) -> None:
    async def work(url: str) -> None:
        engine = make_async_engine(url, poolclass=AsyncAdaptedQueuePool)
        world.vault.attach(engine, tenant_column="tenant_id")
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
        assert checked(world, engine)["plaintext"].verdict is PASSED
        assert engine.sync_engine.pool.checkedin() == 1  # type: ignore[attr-defined]
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
        await engine.dispose()

    for url in async_urls(world.url):
        asyncio.run(work(url))


def test_a_database_that_cannot_be_reached_is_said_not_to_have_been_asked(
    postgres_url: str, world_on: Callable[..., World], make_async_engine: Callable[..., AsyncEngine]
) -> None:
    world = world_on(postgres_url)
    for url in async_urls(postgres_url):
        found = checked(world, make_async_engine(url.replace(str(world.engine.url.database), "nowhere")))
        assert {found[name].verdict for name in ("column-types", "plaintext")} == {Verdict.NOT_MADE}


# The key store, the terms, the clock, the process.


def test_a_key_store_of_an_older_release_fails_and_says_what_to_run(world: World, engine: Engine) -> None:
    with world.engine.begin() as connection:
        connection.execute(text("UPDATE pii_vault_revision SET version_num = '0004'"))
    fresh = Vault(world.url, kms=world.kms)
    found = {each.check: each for each in fresh.doctor("acme", engine=engine)}
    assert (found["key-store"].verdict, found["key-records"].verdict) == (FAILED, FAILED)
    assert "pii-vault db upgrade" in str(found["key-store"].change)
    assert found["engine"].verdict is PASSED
    fresh.close()


def test_a_key_store_that_is_not_there_is_an_error(tmp_path: Any) -> None:
    vault = Vault(f"sqlite:///{tmp_path}/missing/keys.sqlite3", kms=LocalKms(tmp_path / "kms.json"))
    with pytest.raises(KeyStoreError):
        vault.doctor("acme")
    vault.close()


def test_a_missing_trigger_fails(world: World) -> None:
    with world.engine.begin() as connection:
        if world.engine.dialect.name == "sqlite":
            name = connection.scalar(text("SELECT name FROM sqlite_master WHERE type = 'trigger' LIMIT 1"))
            connection.execute(text(f"DROP TRIGGER {name}"))
        else:
            connection.execute(text("ALTER TABLE pii_vault_keys DISABLE TRIGGER USER"))
    found = ours(world.vault)["key-store"]
    assert found.verdict is FAILED
    assert "trigger" in found.finding


def test_a_suspended_tenant_is_a_warning(world: World) -> None:
    assert "tenant" not in ours(world.vault)
    world.vault.suspend("acme")
    assert ours(world.vault)["tenant"].verdict is WARNING


def test_the_terms_in_force_are_told_and_judged(world: World) -> None:
    plain = ours(world.vault)
    assert plain["terms"].verdict is Verdict.INFO
    assert "300 s after the KMS was last asked" in plain["terms"].finding
    assert not {"grace", "ttl"} & set(plain)
    world.vault.set_terms("acme", ttl=7200, grace=60)
    long = ours(world.vault)
    assert "7260 s" in long["terms"].finding
    assert (long["grace"].verdict, long["ttl"].verdict) == (WARNING, WARNING)
    world.vault.set_terms("acme", ttl=0)
    none = ours(world.vault)
    assert none["ttl"].verdict is Verdict.INFO
    assert "kms cost" in none["ttl"].finding
    world.vault.set_terms("acme", ttl=3600)
    assert not {"grace", "ttl"} & set(ours(world.vault))


def test_the_databases_clock_is_compared_where_the_kms_has_none(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ours(world.vault)["clock"]
    if world.engine.dialect.name == "sqlite":
        assert found.verdict is Verdict.NOT_CHECKED
        return
    assert found.verdict is PASSED
    assert "the key store's database" in found.finding
    ours_is = time.time
    monkeypatch.setattr(own_side.time, "time", lambda: ours_is() - 100)
    assert "100 s behind" in ours(world.vault)["clock"].finding
    assert ours(world.vault)["clock"].verdict is WARNING


def test_core_dumps_are_told_about(world: World) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if hard == 0:
        pytest.skip("this system lets nobody write core dumps")
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (4096, hard))
        allowed = ours(world.vault)["core-dumps"]
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
        forbidden = ours(world.vault)["core-dumps"]
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
    assert (allowed.verdict, forbidden.verdict) == (Verdict.INFO, PASSED)
    assert "ulimit" in str(allowed.change)


def test_the_cryptography_is_named(world: World) -> None:
    assert "OpenSSL" in ours(world.vault)["cryptography"].finding
