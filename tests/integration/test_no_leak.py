"""No error, log record or object shows a value or a key, whatever goes wrong."""

import asyncio
import copy
import enum
import json
import logging
import operator
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    CheckConstraint,
    Column,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    bindparam,
    create_engine,
    event,
    insert,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import NullPool
from tests.support.canary import Secrets, chain, leaks, log_leaks, object_leaks, watched_keys
from tests.support.postgres import PostgresServer
from tests.support.strict_kms import FaultRule, StrictKms
from tests.support.urls import async_url

from pii_vault import (
    EncryptedArray,
    EncryptedBoolean,
    EncryptedBytes,
    EncryptedDate,
    EncryptedEnum,
    EncryptedInteger,
    EncryptedJSON,
    EncryptedNumeric,
    EncryptedString,
    EncryptedText,
    EncryptedUUID,
    LocalKms,
    Vault,
)
from pii_vault.context import Identity
from pii_vault.errors import (
    CodecMismatchError,
    ConfigurationError,
    EncodingError,
    ForeignValueError,
    KmsDeniedError,
    KmsError,
    KmsUnavailableError,
    NoTenantError,
    NotEncryptedError,
    OpenError,
    PiiVaultError,
    TenantMismatchError,
    UnsupportedOperationError,
)
from pii_vault.hierarchy import Kek
from pii_vault.keyring import Clock
from pii_vault.keys import Purpose, Secret
from pii_vault.kms import KmsKey

CANARY = "canary-7Qw9ZkPpYv2"
OTHER = "canary-Lm4RtXx8Ns6"
NUMBER = 7351962840517
TTL = 100.0


class Shade(enum.Enum):
    canary_member_a = 1
    canary_member_b = 2


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "people"
    __table_args__ = (CheckConstraint("length(code) < 9", name="short_code"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    code: Mapped[str | None] = mapped_column(unique=True)
    email: Mapped[str | None] = mapped_column(EncryptedString())
    note: Mapped[str | None] = mapped_column(EncryptedText())
    photo: Mapped[bytes | None] = mapped_column(EncryptedBytes())
    number: Mapped[int | None] = mapped_column(EncryptedInteger())
    price: Mapped[Decimal | None] = mapped_column(EncryptedNumeric())
    vip: Mapped[bool | None] = mapped_column(EncryptedBoolean())
    born: Mapped[date | None] = mapped_column(EncryptedDate())
    extra: Mapped[Any | None] = mapped_column(EncryptedJSON())
    tags: Mapped[list[Any] | None] = mapped_column(EncryptedArray(EncryptedString()))
    uid: Mapped[Any | None] = mapped_column(EncryptedUUID())
    shade: Mapped[Shade | None] = mapped_column(EncryptedEnum(Shade))


people: Any = Person.__table__


@dataclass
class Now:
    """A clock that is put forward by hand."""

    seconds: float = 1_000.0

    def read(self) -> float:
        return self.seconds

    def expire_keys(self) -> None:
        self.seconds += TTL + 1


@dataclass
class Place:
    """One driver, a vault behind it, and a customer's KMS key over HTTP."""

    driver: str
    now: Now
    kms: StrictKms
    key: KmsKey
    vault: Vault
    engine: Engine | AsyncEngine
    raw: Engine

    @property
    def sync_engine(self) -> Engine:
        return getattr(self.engine, "sync_engine", self.engine)

    def run(self, work: Callable[[Session], Any]) -> Any:
        """Do the work in a session that is rolled back, inside the scope that is in force."""
        if isinstance(self.engine, AsyncEngine):
            return asyncio.run(self._run(work))
        with Session(self.engine) as session:
            return work(session)

    async def _run(self, work: Callable[[Session], Any]) -> Any:
        async with AsyncSession(self.engine) as session:
            return await session.run_sync(work)

    def stored(self) -> list[Any]:
        with self.raw.connect() as connection:
            return list(connection.execute(text("SELECT * FROM people")).all())


DRIVERS = ("pysqlite", "aiosqlite", "psycopg", "psycopg_async", "asyncpg")


@pytest.fixture(scope="module")
def secrets() -> Iterator[Secrets]:
    """The canaries, and every key that is used in this module."""
    with watched_keys(Secrets(CANARY, OTHER, str(NUMBER), NUMBER.to_bytes(8, "big"))) as known:
        yield known


@pytest.fixture(scope="module")
def kms() -> Iterator[StrictKms]:
    with StrictKms() as server:
        yield server


@pytest.fixture(scope="module", params=DRIVERS)
def place(
    request: pytest.FixtureRequest, secrets: Secrets, kms: StrictKms, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    driver: str = request.param
    if driver in ("pysqlite", "aiosqlite"):
        url = f"sqlite:///{tmp_path_factory.mktemp('place')}/app.sqlite3"
    else:
        server: PostgresServer = request.getfixturevalue("postgres_server")
        url = server.url(server.create_database())
    now = Now()
    vault = Vault(
        url,
        kms=kms.provider(attempts=1),
        platform_key=kms.platform_key(),
        ttl=TTL,
        clock=Clock(now.read, now.read),
    )
    vault.create_all()
    keys = {tenant: kms.customer_key() for tenant in ("acme", "glob")}
    for tenant, key in keys.items():
        vault.add_tenant(tenant, key=key.arn, role_arn=key.role_arn, external_id=key.external_id)
    raw = create_engine(url, hide_parameters=True)
    Base.metadata.create_all(raw)
    if driver in ("pysqlite", "psycopg"):
        engine: Engine | AsyncEngine = create_engine(url, poolclass=NullPool)
    else:
        engine = create_async_engine(async_url(url, driver.removesuffix("_async")), poolclass=NullPool)
    vault.attach(engine, tenant_column="tenant_id")
    yield Place(driver, now, kms, keys["acme"], vault, engine, raw)
    vault.close()
    raw.dispose()


@pytest.fixture(autouse=True)
def every_log(caplog: pytest.LogCaptureFixture, secrets: Secrets) -> Iterator[None]:
    """Let every logger say all it has, but rows of the engine's DEBUG, and find no secret in it."""
    caplog.set_level(logging.INFO, "sqlalchemy.engine")
    for name in ("sqlalchemy.pool", "sqlalchemy.orm", "sqlalchemy.dialects", "botocore", "boto3", "urllib3"):
        caplog.set_level(logging.DEBUG, name)
    caplog.set_level(logging.DEBUG)  # last: it is the level of the handler, too
    yield
    assert log_leaks(caplog.get_records("call"), secrets) == []


def refused(kind: type[BaseException], secrets: Secrets, work: Callable[..., Any], *arguments: Any) -> BaseException:
    """Do what must fail, and return the error after looking for secrets in it."""
    with pytest.raises(kind) as caught:
        work(*arguments)
    assert leaks(caught.value, secrets) == []
    return caught.value


ROW = {"tenant_id": "acme", "email": CANARY, "note": OTHER, "number": NUMBER}


def _flush(session: Session) -> None:
    session.add(Person(**ROW))
    session.flush()


def _flush_many(session: Session) -> None:
    session.add_all([Person(**ROW) for _ in range(3)])
    session.flush()


WRITES: dict[str, Callable[[Session], Any]] = {
    "flush": _flush,
    "flush of many": _flush_many,
    "Core insert": lambda session: session.execute(insert(people), ROW),
    "Core insert of a number": lambda session: session.execute(insert(people), {"tenant_id": "acme", "number": NUMBER}),
    "values()": lambda session: session.execute(insert(people).values(**ROW)),
    "several values()": lambda session: session.execute(insert(people).values([ROW, ROW])),
    "executemany": lambda session: session.connection().execute(insert(people), [ROW, ROW]),
    "insertmanyvalues": lambda session: session.execute(insert(Person).returning(Person.id), [ROW, ROW]).all(),
    "bulk_insert_mappings": lambda session: session.bulk_insert_mappings(Person, [ROW, ROW]),  # type: ignore[arg-type]
    "bulk_save_objects": lambda session: session.bulk_save_objects([Person(**ROW)]),
    "update": lambda session: session.execute(update(Person).values(email=CANARY)),
    "a bound parameter": lambda session: session.execute(
        update(people).where(people.c.id == bindparam("which")).values(email=bindparam("what")),
        [{"which": 1, "what": CANARY}, {"which": 2, "what": CANARY}],
    ),
}

FAILURES: dict[str, tuple[type[KmsError], Callable[[Place], None], Callable[[Place], None]]] = {
    "disabled": (KmsDeniedError, lambda it: it.kms.disable(it.key.arn), lambda it: it.kms.enable(it.key.arn)),
    "unreachable": (
        KmsUnavailableError,
        lambda it: it.kms.script(FaultRule("Decrypt", drop=True, times=None)),
        lambda it: it.kms.clear_script(),
    ),
    "denied": (
        KmsDeniedError,
        lambda it: it.kms.script(FaultRule("Decrypt", error="AccessDeniedException", times=None)),
        lambda it: it.kms.clear_script(),
    ),
}


@pytest.mark.parametrize(
    ("failure", "moment"),
    [
        ("disabled", "before the statement"),
        ("unreachable", "before the statement"),
        ("unreachable", "while values are bound"),
        ("denied", "while values are bound"),
    ],
)
def test_a_failing_kms_shows_and_writes_nothing(
    place: Place, secrets: Secrets, caplog: pytest.LogCaptureFixture, failure: str, moment: str
) -> None:
    kind, fail, repair = FAILURES[failure]
    before = place.stored()
    # Registered after the vault's own hook, so that the keys expire when they have just been looked at.
    late = moment == "while values are bound"

    def listener(*_: Any) -> None:
        place.now.expire_keys()

    for write in WRITES.values():
        with place.vault.tenant("acme"):
            fail(place)
            if late:
                event.listen(place.sync_engine, "before_execute", listener)
            else:
                place.now.expire_keys()
            try:
                refused(kind, secrets, place.run, write)
            finally:
                repair(place)
                place.vault.evict("acme")  # its failure is remembered, and the clock stands still
                if late:
                    event.remove(place.sync_engine, "before_execute", listener)
    assert place.stored() == before
    assert len(secrets) > 6
    # The log that was searched holds the details in which keys would be.
    assert "botocore.hooks" in {record.name for record in caplog.records}


class Stubborn(str):
    """Text that does not let itself be handled."""

    def encode(self, *_: Any, **__: Any) -> bytes:
        raise ValueError(CANARY)

    def __str__(self) -> str:
        raise ValueError(CANARY)

    __repr__ = __str__


class Thing:
    """What tells all in its repr, and raises it where a codec looks at it."""

    def __repr__(self) -> str:
        return CANARY

    def __bool__(self) -> bool:
        raise ValueError(CANARY)

    def __index__(self) -> int:
        raise ValueError(CANARY)


class Members(dict[str, Any]):
    def items(self) -> Any:
        raise ValueError(CANARY)

    __iter__ = keys = values = items


class Colour(enum.Enum):
    canary = CANARY


BAD_VALUES: dict[str, tuple[str, Any]] = {
    "a number as text": ("email", NUMBER),
    "a thing as text": ("email", Thing()),
    "bytes as text": ("email", CANARY.encode()),
    "a lone surrogate": ("email", CANARY + "\ud800"),
    "text as bytes": ("photo", CANARY),
    "text as a number": ("number", CANARY),
    "a thing as a number": ("number", Thing()),
    "text as a decimal": ("price", CANARY),
    "no number": ("price", Decimal("NaN7351962840517")),
    "text as a truth value": ("vip", CANARY),
    "text as a date": ("born", CANARY),
    "a thing in JSON": ("extra", {"key": [CANARY, Thing()]}),
    "bytes in JSON": ("extra", {CANARY: CANARY.encode()}),
    "a lone surrogate in JSON": ("extra", {CANARY: CANARY + "\udfff"}),
    "a number in a list of text": ("tags", [CANARY, NUMBER]),
    "text as a list": ("tags", CANARY),
    "text as a UUID": ("uid", CANARY),
    "another enumeration's member": ("shade", Colour.canary),
    "a mapping that cannot be read": ("extra", Members(a=CANARY)),
    "a name as a member": ("shade", CANARY),
}


def _writes_of(column: str, value: Any) -> list[Callable[[Session], Any]]:
    row, empty = {**ROW, column: value}, {**ROW, column: None}

    def flush(session: Session) -> None:
        session.add(Person(**row))
        session.flush()

    return [
        flush,
        lambda session: session.execute(insert(people).values(**row)),
        lambda session: session.connection().execute(insert(people), [empty, row]),
        lambda session: session.execute(insert(Person).returning(Person.id), [empty, row]),
    ]


def test_a_value_that_does_not_fit_is_refused_and_not_shown(place: Place, secrets: Secrets) -> None:
    before = place.stored()
    with place.vault.tenant("acme"):
        for column, value in BAD_VALUES.values():
            for write in _writes_of(column, value):
                error = refused(EncodingError, secrets, place.run, write)
                assert f"people.{column}" in str(error)
    assert place.stored() == before


def test_text_that_handles_itself_badly_is_sealed_as_the_text_it_is(place: Place, secrets: Secrets) -> None:
    def work(session: Session) -> Any:
        session.execute(insert(people), {"tenant_id": "acme", "email": Stubborn(OTHER)})
        return session.scalar(select(people.c.email))

    with place.vault.tenant("acme"):
        assert place.run(work) == OTHER


def test_no_scope_and_another_tenant_s_row_are_refused_without_showing_the_row(place: Place, secrets: Secrets) -> None:
    for name, write in WRITES.items():
        refused(NoTenantError, secrets, place.run, write)
        if name not in ("update", "a bound parameter"):
            with place.vault.tenant("glob"):
                refused(TenantMismatchError, secrets, place.run, write)


@pytest.fixture
def one_row(place: Place) -> Iterator[Place]:
    def work(session: Session) -> None:
        session.add(Person(id=1, code="first", **ROW))
        session.commit()

    with place.vault.tenant("acme"):
        place.run(work)
    yield place
    with place.raw.begin() as connection:
        connection.execute(text("DELETE FROM people"))


def _read(session: Session) -> Any:
    return session.execute(select(people.c.email).order_by(people.c.id)).all()


def test_tampered_copied_and_foreign_values_are_refused_without_showing_anything(
    one_row: Place, secrets: Secrets
) -> None:
    def put(sql: str) -> None:
        with one_row.raw.begin() as connection:
            connection.execute(text(sql))

    with one_row.vault.tenant("glob"):
        refused(ForeignValueError, secrets, one_row.run, _read)
        refused(ForeignValueError, secrets, one_row.run, lambda session: session.get(Person, 1))
    with one_row.vault.tenant("acme"):
        assert one_row.run(_read) == [(CANARY,)]
        put("UPDATE people SET email = note")
        refused(OpenError, secrets, one_row.run, _read)
        put("UPDATE people SET email = number")
        refused(OpenError, secrets, one_row.run, _read)
        with one_row.raw.begin() as connection:
            connection.execute(text("UPDATE people SET email = :plain"), {"plain": CANARY.encode()})
        refused(NotEncryptedError, secrets, one_row.run, _read)


def test_a_column_whose_type_was_changed_shows_nothing_of_what_it_opened(one_row: Place, secrets: Secrets) -> None:
    changed = Table(
        "people",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("tenant_id", String),
        Column("email", EncryptedInteger()),
        Column("tags", EncryptedArray(EncryptedInteger())),
        Column("shade", EncryptedEnum(Colour)),
    )

    def store(session: Session) -> None:
        # The first row of each column opens under the changed type as well.
        session.execute(insert(changed), {"id": 10, "tenant_id": "acme", "tags": [], "shade": Colour.canary})
        session.execute(
            insert(people), {"id": 11, "tenant_id": "acme", "tags": [CANARY], "shade": Shade.canary_member_a}
        )
        session.commit()

    def read(name: str) -> Callable[[Session], Any]:
        return lambda session: session.execute(select(changed.c[name]).order_by(changed.c.id.desc()).limit(1)).all()

    def read_in_order(name: str) -> Callable[[Session], Any]:
        query = select(changed.c[name]).where(changed.c.id >= 10).order_by(changed.c.id)
        return lambda session: session.execute(query).all()

    with one_row.vault.tenant("acme"):
        one_row.run(store)
        refused(
            CodecMismatchError, secrets, one_row.run, lambda session: session.scalars(select(changed.c.email)).all()
        )
        for name in ("tags", "shade"):
            refused(OpenError, secrets, one_row.run, read(name))
            refused(OpenError, secrets, one_row.run, read_in_order(name))


def test_errors_of_the_database_show_sealed_values_only(one_row: Place, secrets: Secrets) -> None:
    def insert_row(**extra: Any) -> Callable[[Session], Any]:
        return lambda session: session.execute(insert(people), {**ROW, **extra})

    def flush_row(**extra: Any) -> Callable[[Session], Any]:
        def work(session: Session) -> None:
            session.add_all([Person(**{**ROW, **extra}), Person(**ROW)])
            session.flush()

        return work

    with one_row.vault.tenant("acme"):
        for write in (insert_row, flush_row):
            error = refused(IntegrityError, secrets, one_row.run, write(code="first"))
            assert "people" in str(error)
            assert "\\xfa" in str(error)
            refused(IntegrityError, secrets, one_row.run, write(code="too long for it"))
        if one_row.sync_engine.dialect.name == "postgresql":
            refused(DBAPIError, secrets, one_row.run, insert_row(code="zero\x00"))
            refused(DBAPIError, secrets, one_row.run, insert_row(id=2**40))


def test_comparisons_and_literals_are_refused_without_showing_the_value(place: Place, secrets: Secrets) -> None:
    email = Person.email
    for build in (
        lambda: email == CANARY,
        lambda: email != CANARY,
        lambda: email.in_([CANARY, OTHER]),
        lambda: email.like(f"%{CANARY}%"),
        lambda: operator.eq(CANARY, email),
        lambda: email + CANARY,
        lambda: email.between(CANARY, OTHER),
    ):
        refused(UnsupportedOperationError, secrets, build)
    statements = [
        insert(people).values(**ROW),
        insert(people).values([ROW, ROW]),
        update(people).values(email=CANARY),
        select(people.c.id).where(literal(CANARY, EncryptedString(context="people.email")).is_not(None)),
    ]
    for statement in statements:
        literally = partial(statement.compile, compile_kwargs={"literal_binds": True})
        refused(UnsupportedOperationError, secrets, literally, place.sync_engine)
        assert not secrets.in_text(str(statement))
        assert not secrets.in_text(str(literally()))
    at_execution = bindparam("what", CANARY, type_=EncryptedString(context="people.email"), literal_execute=True)
    own_type = bindparam("what", CANARY, type_=people.c.email.type, literal_execute=True)
    written = insert(people).values(email=own_type)
    with place.vault.tenant("acme"):
        refused(UnsupportedOperationError, secrets, place.run, lambda session: session.execute(written))
        for bound in (at_execution, bindparam("what", CANARY, type_=EncryptedString(context="people.email"))):
            query = select(people.c.id).where(literal(1) == bound)
            refused(UnsupportedOperationError, secrets, place.run, lambda session: session.execute(query))  # noqa: B023


def test_an_engine_that_is_not_attached_neither_writes_nor_shows(one_row: Place, secrets: Secrets) -> None:
    before = one_row.stored()
    for name, write in WRITES.items():
        with one_row.vault.tenant("acme"), Session(one_row.raw) as session:
            refused(ConfigurationError, secrets, write, session)
            session.rollback()
            refused(ConfigurationError, secrets, _read, session)
        assert one_row.stored() == before, name


def test_the_engine_s_info_log_shows_sealed_values_and_its_debug_log_shows_rows(
    place: Place, secrets: Secrets, caplog: pytest.LogCaptureFixture
) -> None:
    """The second half is SQLAlchemy's doing and documented: nobody may run with echo="debug" on customers' data."""

    def work(session: Session) -> None:
        session.add(Person(**ROW))
        session.flush()
        session.expire_all()
        assert session.scalars(select(Person.email)).all() == [CANARY]

    with place.vault.tenant("acme"):
        place.run(work)
    engine_records = [record for record in caplog.records if record.name.startswith("sqlalchemy.engine")]
    assert "INSERT INTO people" in caplog.text
    assert log_leaks(engine_records, secrets) == []
    with caplog.at_level(logging.DEBUG, "sqlalchemy.engine"), place.vault.tenant("acme"):
        caplog.clear()
        place.run(work)
    shown = log_leaks(caplog.records, secrets)
    assert shown
    assert all(each.startswith("sqlalchemy.engine.Engine ") for each in shown)
    assert all(record.getMessage().startswith("Row ") for record in caplog.records if CANARY in record.getMessage())
    caplog.clear()


def test_objects_that_hold_keys_show_none_and_are_not_pickled(tmp_path: Path, secrets: Secrets) -> None:
    local = LocalKms(tmp_path / "kms.json")
    vault = Vault(f"sqlite:///{tmp_path / 'app.sqlite3'}", kms=local, default_tenant="acme")
    vault.create_all()
    vault.add_tenant("acme", key=local.create_key())
    generated = local.generate(KmsKey(local.create_key()), {"a": "b"})
    secrets.add(generated.plaintext)
    identity = Identity(bytes(16), bytes(16), 7)
    secret = Secret(generated.plaintext)
    kek = Kek(identity, 1, secret)
    kek.wrap(Purpose.DATA, 1, secret)
    with vault.tenant("acme") as scope:
        keyset = scope.keyset
        assert keyset is not None
        sealed = keyset.seal("people.email", 1, CANARY.encode())
        opening = keyset.opening("people.email", sealed[:10])
        keyset.openings["slot"] = {sealed[:10]: opening}
        keyset.sealings["slot"] = keyset.sealing("people.email", 1)
        keyring = scope.keyring
        for thing in (secret, kek, generated, keyset, opening, keyset.sealings, keyset.openings, keyring, scope, local):
            assert object_leaks(thing, secrets) == []
        for thing in (vault, vault._parts, vault._store, local._file, EncryptedString(), KmsKey("arn", None, "id")):
            assert object_leaks(thing, secrets) == []
        for thing in (secret, kek, generated, keyset, local, keyring, scope, vault, {"deep": [secret]}):
            for attempt in (pickle.dumps, copy.deepcopy, json.dumps):
                # An engine's own refusal is an AttributeError.
                with pytest.raises((TypeError, AttributeError)) as caught:
                    attempt(thing)
                assert leaks(caught.value, secrets) == []
        for thing in (secret, generated, keyset, local):
            with pytest.raises(TypeError):
                copy.copy(thing)
        with pytest.raises(TypeError):
            operator.eq(secret, secret)
    vault.close()


def test_a_key_file_that_cannot_be_read_is_not_quoted(tmp_path: Path, secrets: Secrets) -> None:
    path = tmp_path / "kms.json"
    local = LocalKms(path)
    arn = local.create_key()
    for material in local._file.read().keys[arn].materials:
        secrets.add(material.secret)
    path.write_text(path.read_text()[:-10])
    assert secrets.in_text(path.read_text())
    refused(ConfigurationError, secrets, LocalKms, path)
    refused(ConfigurationError, secrets, local.describe, KmsKey(arn))
    refused(ConfigurationError, secrets, local.create_key)


def test_a_pickled_object_holds_its_plaintext_and_no_key_and_merges_again(one_row: Place, secrets: Secrets) -> None:
    """That the plaintext is in the pickle is what pickling an object means."""

    def work(session: Session) -> bytes:
        return pickle.dumps(session.get_one(Person, 1))

    def merge(session: Session) -> Any:
        person = pickle.loads(pickled)
        person.note = "changed"
        merged = session.merge(person)
        session.commit()
        return session.execute(select(Person.email, Person.note)).all(), merged is person

    with one_row.vault.tenant("acme"):
        pickled = one_row.run(work)
        assert one_row.run(merge) == ([(CANARY, "changed")], False)
    shown = secrets.in_bytes(pickled)
    assert shown == secrets.in_text(CANARY) | secrets.in_text(OTHER) | secrets.in_text(str(NUMBER)) - {
        name for name in secrets.in_text(str(NUMBER)) if str(NUMBER).encode() not in pickled
    }
    with one_row.vault.tenant("glob"):
        refused(TenantMismatchError, secrets, one_row.run, merge)


def test_errors_carry_no_foreign_error_that_holds_a_value(place: Place, secrets: Secrets) -> None:
    with place.vault.tenant("acme"):
        bad_row = {**ROW, "email": CANARY + "\ud800"}
        error = refused(EncodingError, secrets, place.run, lambda session: session.execute(insert(people), bad_row))
    assert [type(each) for each in chain(error)] == [EncodingError]
    assert isinstance(error, PiiVaultError)


def _error_with(**attributes: Any) -> BaseException:
    error = ValueError("nothing here")
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


@pytest.mark.parametrize(
    "attributes",
    [
        {"args": ("a", CANARY)},
        {"__notes__": [CANARY]},
        {"params": [{"email": CANARY}]},
        {"statement": f"SELECT '{CANARY}'"},
        {"orig": ValueError(CANARY)},
        {"__cause__": ValueError(CANARY.encode())},
        {"__context__": KeyError({"deep": [CANARY.encode().hex()]})},
        {"object": CANARY},
        {"exceptions": [ValueError([CANARY])]},
    ],
)
def test_the_scanner_finds_a_secret_wherever_an_error_drags_it_along(attributes: dict[str, Any]) -> None:
    assert leaks(_error_with(**attributes), Secrets(CANARY))
    assert not leaks(_error_with(**attributes), Secrets(OTHER))


def test_the_scanner_looks_at_our_frames_and_ends_at_an_error_that_is_its_own_cause() -> None:
    with pytest.raises(ConfigurationError) as caught:
        LocalKms(Path(f"/{CANARY}/{CANARY}"))
    error = caught.value
    error.__cause__ = error
    error.args = ()
    assert any("local path" in place for place in leaks(error, Secrets(CANARY)))
    assert list(chain(error)) == [error]
