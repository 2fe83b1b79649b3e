"""A migration that seals a plaintext column, and one that opens it again: `op.encrypt_column`, `op.decrypt_column`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import (
    CheckConstraint,
    Engine,
    Index,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    event,
    func,
    inspect,
    select,
    text,
)
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from tests.support.alembic_app import ENV, AlembicApp
from tests.support.canary import Secrets, leaks, log_leaks
from tests.support.urls import async_url
from tests.support.world import World

from pii_vault import BlindIndex, EncryptedString, LastChars, Vault
from pii_vault.backfill.rows import Rows
from pii_vault.envelope import parse
from pii_vault.errors import BackfillError, ConfigurationError, KmsDeniedError, KmsUnavailableError
from pii_vault.keystore.schema import key_use
from pii_vault.migrations import include_object, moving

pytestmark = [
    pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index"),
    pytest.mark.filterwarnings("ignore:autogenerate skipping metadata-specified expression-based index"),
]


class Plain(DeclarativeBase):
    """The application before."""


class Sealed(DeclarativeBase):
    """The application afterwards."""


class PlainCustomer(Plain):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str | None] = mapped_column(String(50))
    email: Mapped[str | None] = mapped_column(String(100))
    note: Mapped[str] = mapped_column(Text, default="")


class Customer(Sealed):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str | None] = mapped_column(String(50))
    email: Mapped[str | None] = mapped_column(
        EncryptedString(index=BlindIndex(normalise=("casefold",)), tokens={"last4": LastChars(4)})
    )
    note: Mapped[str] = mapped_column(Text, default="")


KIND = "EncryptedString(index=BlindIndex(normalise=('casefold',)), tokens={'last4': LastChars(4)})"
HEAD = "from pii_vault import *\nfrom pii_vault import BlindIndex, EncryptedString, LastChars\n"
ENCRYPT = f'op.encrypt_column("customers", "email", {KIND}, tenant_column="tenant_id")'
DECRYPT = f'op.decrypt_column("customers", "email", {KIND}, sa.String(100), tenant_column="tenant_id")'
INDEX = 'op.create_blind_index("ix_customers_email_blind", "customers", "email", slot=0, if_not_exists=True)'
LAST4 = 'op.create_blind_index("ix_customers_email_last4", "customers", "email", slot=1, if_not_exists=True)'
UNINDEX = 'op.drop_blind_index("ix_customers_email_blind", "customers", "email", slot=0)'
UNLAST4 = 'op.drop_blind_index("ix_customers_email_last4", "customers", "email", slot=1)'

ROWS = [
    {"id": 1, "tenant_id": "acme", "email": "ada@example.com"},
    {"id": 2, "tenant_id": "acme", "email": None},
    {"id": 3, "tenant_id": "glob", "email": "Zoë 😀 ß@example.com"},
    {"id": 4, "tenant_id": "acme", "email": ""},
    {"id": 5, "tenant_id": "glob", "email": "' \\ % :x %s ; \n"},
    {"id": 6, "tenant_id": None, "email": None},
    *({"id": 10 + n, "tenant_id": "acme", "email": f"p{n}@example.com"} for n in range(40)),
]


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def world(request: pytest.FixtureRequest, world_on: Callable[..., World], tmp_path: Path) -> World:
    names = {"sqlite": "sqlite_url", "postgresql": "postgres_url", "mariadb": "mariadb_url"}
    # No key store is on MariaDB.
    keys = {"key_store_url": f"sqlite:///{tmp_path / 'keys.sqlite3'}"} if request.param == "mariadb" else {}
    return world_on(request.getfixturevalue(names[request.param]), **keys)


@pytest.fixture
def app(world: World, make_engine: Callable[..., Engine], tmp_path: Path) -> AlembicApp:
    """An application with an environment that names the vault."""
    return AlembicApp(tmp_path / "app", make_engine(world.url), {"pii_vault": world.vault})


@pytest.fixture
def filled(world: World, app: AlembicApp) -> AlembicApp:
    """With customers in plaintext."""
    Plain.metadata.create_all(world.engine)
    insert(world.engine, ROWS)
    return app


def insert(engine: Engine, rows: list[dict[str, Any]]) -> None:
    with engine.begin() as connection:
        connection.execute(PlainCustomer.__table__.insert(), [{"note": "", **row} for row in rows])


def write(app: AlembicApp, up: str, down: str = "pass") -> None:
    """Write a revision with the package's names in it."""
    lines = ["\n    ".join(each.strip().splitlines()) for each in (up, down)]
    imports = "from pii_vault import BlindIndex, EncryptedString, LastChars\nimport tests\n"
    app.write_revision(f"{imports}def upgrade():\n    {lines[0]}\ndef downgrade():\n    {lines[1]}\n")


def plaintext(engine: Engine) -> dict[int, str | None]:
    with engine.connect() as connection:
        table: Any = PlainCustomer.__table__
        return dict(connection.execute(select(table.c.id, table.c.email)).all())


def stored(engine: Engine) -> dict[int, bytes | None]:
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT id, email FROM customers"))
        return {key: None if email is None else bytes(email) for key, email in rows}


def opened(world: World) -> dict[int, str | None]:
    """Return what the application reads of all tenants' rows."""
    found: dict[int, str | None] = {}
    for tenant in ("acme", "glob"):
        with world.session(tenant) as session:
            query = select(Customer.id, Customer.email).where(Customer.tenant_id == tenant)
            found |= dict(session.execute(query).all())
    return found


def expected(tenants: tuple[str, ...] = ("acme", "glob")) -> dict[int, str | None]:
    return {row["id"]: row["email"] for row in ROWS if row["tenant_id"] in tenants}


def revision(engine: Engine) -> str | None:
    if not inspect(engine).has_table("alembic_version"):
        return None
    with engine.connect() as connection:
        return connection.scalar(text("SELECT version_num FROM alembic_version"))


def columns(engine: Engine) -> set[str]:
    return {each["name"] for each in inspect(engine).get_columns("customers") if not each.get("computed")}


def differences(engine: Engine, metadata: MetaData) -> list[Any]:
    with engine.connect() as connection:
        options = {"include_object": include_object}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))


def test_a_column_is_sealed_with_its_values_and_opened_again(world: World, filled: AlembicApp) -> None:
    write(filled, f"{ENCRYPT}\n{INDEX}\n{LAST4}", f"{UNINDEX}\n{UNLAST4}\n{DECRYPT}")
    filled.upgrade(Sealed.metadata)
    for tenant in ("acme", "glob"):  # written down before anything is sealed, and not by the first search
        slots = {(each.context, each.number) for each in world.vault._store.load(tenant).slots}
        assert slots == {("customers.email", 0), ("customers.email", 1)}
    assert opened(world) == expected()
    assert {key for key, value in stored(world.engine).items() if value is None} == {2, 6}
    assert all(parse(value).tokens == 2 for value in stored(world.engine).values() if value is not None)
    with world.session() as session:
        assert session.scalars(select(Customer.id).where(Customer.email == "ADA@example.com")).all() == [1]
        assert len(session.scalars(select(Customer.id).where(Customer.email.token("last4") == ".com")).all()) == 41
    assert columns(world.engine) == {"id", "tenant_id", "email", "note"}
    filled.check(Sealed.metadata)
    filled.downgrade(Plain.metadata)
    assert plaintext(world.engine) == {row["id"]: row["email"] for row in ROWS}
    assert columns(world.engine) == {"id", "tenant_id", "email", "note"}
    assert differences(world.engine, Plain.metadata) == []
    filled.upgrade(Sealed.metadata)
    assert opened(world) == expected()
    filled.check(Sealed.metadata)


def test_it_is_done_once_however_often_it_is_run(world: World, filled: AlembicApp) -> None:
    """As after a process that was killed when it had done everything but to write its revision down."""
    write(filled, ENCRYPT, DECRYPT)
    filled.upgrade(Sealed.metadata)
    before = stored(world.engine)
    command.stamp(filled.config(Sealed.metadata), "base")
    filled.upgrade(Sealed.metadata)
    assert stored(world.engine) == before
    filled.downgrade(Plain.metadata)
    command.stamp(filled.config(Sealed.metadata), "head")
    filled.downgrade(Plain.metadata)
    assert plaintext(world.engine) == {row["id"]: row["email"] for row in ROWS}


def test_bytes_are_told_by_opening_them(world: World, app: AlembicApp) -> None:
    """Sealed bytes and others look alike to a database."""
    make = "CREATE TABLE files (id INTEGER PRIMARY KEY, tenant_id VARCHAR(50), body {})"
    kind = {"mariadb": "LONGBLOB", "postgresql": "BYTEA"}.get(world.engine.dialect.name, "BLOB")
    with world.engine.begin() as connection:
        connection.exec_driver_sql(make.format(kind))
        connection.execute(text("INSERT INTO files VALUES (1, 'acme', :body)"), {"body": b"\xfa\x00plain"})
    arguments = '"files", "body", EncryptedBytes(context="f"){}, tenant_column="tenant_id")'
    up, down = arguments.format(""), arguments.format(", sa.LargeBinary()")
    imports = "from pii_vault import EncryptedBytes\n"
    write(app, f"{imports}op.encrypt_column({up}\nop.encrypt_column({up}", f"{imports}op.decrypt_column({down}")
    app.upgrade(Sealed.metadata)
    with world.engine.connect() as connection:
        body = bytes(connection.scalar(text("SELECT body FROM files")))
    assert len(body) == len(b"\xfa\x00plain") + 38
    app.downgrade(Plain.metadata)
    with world.engine.connect() as connection:
        assert bytes(connection.scalar(text("SELECT body FROM files"))) == b"\xfa\x00plain"


def unchanged(world: World, app: AlembicApp) -> None:
    assert plaintext(world.engine) == {row["id"]: row["email"] for row in ROWS}
    assert columns(world.engine) == {"id", "tenant_id", "email", "note"}
    assert revision(world.engine) is None
    assert not inspect(world.engine).has_table("made_before") or world.engine.dialect.name != "postgresql"


BEFORE = "op.create_table('made_before', sa.Column('id', sa.Integer), if_not_exists=True)"


def test_a_kms_that_refuses_stops_it_before_anything_is_changed(world: World, filled: AlembicApp) -> None:
    world.kms.disable_key(world.keys["glob"])
    world.vault.evict("glob")
    write(filled, f"{BEFORE}\n{ENCRYPT}")
    with pytest.raises(KmsDeniedError, match=r"tenant 'glob': .*[Dd]isabled") as caught:
        filled.upgrade(Sealed.metadata)
    assert "acme" not in str(caught.value)
    unchanged(world, filled)
    world.kms.enable_key(world.keys["glob"])
    world.vault.evict("glob")
    filled.upgrade(Sealed.metadata)
    assert opened(world) == expected()


def test_a_kms_that_cannot_be_reached_stops_it_before_anything_is_changed(
    world: World, filled: AlembicApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any) -> Any:
        raise KmsUnavailableError("nobody answers")

    write(filled, f"{BEFORE}\n{ENCRYPT}")
    with monkeypatch.context() as patched:
        patched.setattr(type(world.kms), "unwrap", unreachable)
        with pytest.raises(KmsUnavailableError, match="tenant 'acme': nobody answers; tenant 'glob': nobody"):
            filled.upgrade(Sealed.metadata)
    unchanged(world, filled)


def test_a_refusal_in_the_middle_names_the_tenant_and_the_rest_is_done_later(
    world: World, filled: AlembicApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(filled, ENCRYPT[:-1] + ", batch=3)")
    real, batches = Rows.write, []

    def write_and_refuse(self: Any, *args: Any, **kw: Any) -> int:
        batches.append(None)
        if len(batches) == 2:
            world.kms.disable_key(world.keys["acme"])
            world.vault.evict("acme")
        return real(self, *args, **kw)

    monkeypatch.setattr(Rows, "write", write_and_refuse)
    with pytest.raises(KmsDeniedError, match="tenant 'acme': "):
        filled.upgrade(Sealed.metadata)
    assert "pii_vault_sealed_email" in columns(world.engine)
    assert plaintext(world.engine) == {row["id"]: row["email"] for row in ROWS}
    world.kms.enable_key(world.keys["acme"])
    world.vault.evict("acme")
    filled.upgrade(Sealed.metadata)
    assert opened(world) == expected()


def test_rows_of_nobody_are_named_and_nothing_is_changed(world: World, filled: AlembicApp) -> None:
    secret = "of nobody in particular"
    insert(world.engine, [{"id": 90 + n, "tenant_id": name, "email": secret} for n, name in enumerate((None, "ghost"))])
    write(filled, f"{BEFORE}\n{ENCRYPT}")
    with pytest.raises(BackfillError) as caught:
        filled.upgrade(Sealed.metadata)
    assert "no tenant: 1 (id = 90)" in str(caught.value)
    assert "tenant 'ghost', who is not registered or is erased: 1 (id = 91)" in str(caught.value)
    assert leaks(caught.value, Secrets(secret)) == []
    assert columns(world.engine) == {"id", "tenant_id", "email", "note"}
    assert not inspect(world.engine).has_table("made_before") or world.engine.dialect.name != "postgresql"
    with world.engine.begin() as connection:
        connection.execute(text("UPDATE customers SET tenant_id = 'acme' WHERE id > 89"))
    filled.upgrade(Sealed.metadata)
    assert opened(world) == {**expected(), 90: secret, 91: secret}


def test_a_row_of_nobody_that_comes_meanwhile_is_named_and_stays(
    world: World, filled: AlembicApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(filled, ENCRYPT)
    between(monkeypatch, lambda: insert(world.engine, [{"id": 99, "tenant_id": "ghost", "email": "late"}]))
    with pytest.raises(BackfillError, match="row with id = 99: it belongs to nobody"):
        filled.upgrade(Sealed.metadata)
    assert plaintext(world.engine)[99] == "late"
    assert revision(world.engine) is None


def test_a_value_that_does_not_fit_is_named_and_stays_and_shows_nowhere(
    world: World, filled: AlembicApp, caplog: pytest.LogCaptureFixture
) -> None:
    kind = "EncryptedDate(context='customers.email')"
    write(filled, f"from pii_vault import EncryptedDate\n{ENCRYPT.replace(KIND, kind)}")
    with pytest.raises(BackfillError, match=r"row with id = 1: .*; and 24 more") as caught:
        filled.upgrade(Sealed.metadata)
    secrets = Secrets("ada@example.com", "Zoë 😀 ß@example.com", "p7@example.com")
    assert leaks(caught.value, secrets) == []
    assert log_leaks(caplog.records, secrets) == []
    assert plaintext(world.engine) == {row["id"]: row["email"] for row in ROWS}
    assert revision(world.engine) is None


def test_a_value_that_does_not_fit_the_plain_type_stays_sealed(world: World, filled: AlembicApp) -> None:
    if world.engine.dialect.name == "sqlite":
        pytest.skip("SQLite takes text of any length")
    write(filled, ENCRYPT, DECRYPT.replace("sa.String(100)", "sa.String(5)"))
    filled.upgrade(Sealed.metadata)
    before = stored(world.engine)
    with pytest.raises(BackfillError, match=r"row with id = 1: the database does not take it") as caught:
        filled.downgrade(Plain.metadata)
    assert leaks(caught.value, Secrets("ada@example.com", "p7@example.com")) == []
    assert stored(world.engine) == before
    assert revision(world.engine) == "r1"


def tampered(sealed: bytes) -> bytes:
    return sealed[:-1] + bytes((sealed[-1] ^ 1,))


def test_a_value_that_was_tampered_with_is_named_and_stays(world: World, filled: AlembicApp) -> None:
    write(filled, ENCRYPT, DECRYPT)
    filled.upgrade(Sealed.metadata)
    with world.engine.begin() as connection:
        broken = tampered(bytes(stored(world.engine)[1] or b""))
        connection.execute(text("UPDATE customers SET email = :broken WHERE id = 1"), {"broken": broken})
        other = stored(world.engine)[10]
        connection.execute(text("UPDATE customers SET email = :other WHERE id = 3"), {"other": other})
    with pytest.raises(BackfillError, match=r"row with id = 1: .*; row with id = 3: "):
        filled.downgrade(Plain.metadata)
    assert stored(world.engine)[1] == broken
    assert revision(world.engine) == "r1"


def between(monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> None:
    """Do something when all rows are filled, and the table is not locked yet."""
    real = moving.alone

    @contextmanager
    def first(*arguments: Any) -> Iterator[Any]:
        do()
        with real(*arguments) as batches:
            yield batches

    monkeypatch.setattr(moving, "alone", first)


def execute(engine: Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for each in statements:
            connection.execute(text(each))


def test_what_others_write_meanwhile_is_not_lost(
    world: World, filled: AlembicApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row is changed after it was read and before it is written; others after they were written."""
    write(filled, ENCRYPT[:-1] + ", batch=4)")
    real, calls = Rows.write, []

    def late(self: Any, *arguments: Any, **kw: Any) -> int:
        if not calls:
            calls.append(None)
            connection = arguments[0]  # SQLite has one writer, and this is it
            connection.execute(text("UPDATE customers SET email = 'ADA@example.com' WHERE id = 1"))
        return real(self, *arguments, **kw)

    def later() -> None:
        with world.engine.connect() as connection:
            sealed = connection.execute(text("SELECT id, pii_vault_sealed_email FROM customers")).all()
        assert all((value is not None) == (plaintext(world.engine)[key] is not None) for key, value in sealed)
        with world.vault.tenant("acme") as scope:
            values: dict[int, Any] = {row[0]: row[1] for row in sealed}
            assert scope.open_("customers.email", bytes(values[1]))[1] == b"ADA@example.com"
        execute(
            world.engine,
            "UPDATE customers SET email = 'Zoe' WHERE id = 3",
            "UPDATE customers SET email = NULL WHERE id = 5",
            "UPDATE customers SET email = 'two' WHERE id = 2",
            "UPDATE customers SET tenant_id = 'glob' WHERE id = 12",
        )
        insert(world.engine, [{"id": 99, "tenant_id": "glob", "email": "new"}])

    monkeypatch.setattr(Rows, "write", late)
    between(monkeypatch, later)
    filled.upgrade(Sealed.metadata)
    changes = {1: "ADA@example.com", 2: "two", 3: "Zoe", 5: None, 99: "new"}
    assert opened(world) == {**expected(), **changes}


def test_every_value_is_compared_before_the_plaintext_goes(
    world: World, filled: AlembicApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sealed value of another row, one that is broken and one that is missing are all found."""
    write(filled, ENCRYPT)

    def mix() -> None:
        with world.engine.begin() as connection:
            rows = connection.execute(text("SELECT id, pii_vault_sealed_email FROM customers")).all()
            sealed = {key: None if value is None else bytes(value) for key, value in rows}
            broken = tampered(sealed[4] or b"")
            for key, value in ((1, sealed[10]), (12, sealed[11]), (4, broken), (11, None), (6, sealed[10])):
                update = text("UPDATE customers SET pii_vault_sealed_email = :value WHERE id = :key")
                connection.execute(update, {"key": key, "value": value})

    between(monkeypatch, mix)
    filled.upgrade(Sealed.metadata)
    assert opened(world) == expected()
    assert stored(world.engine)[6] is None


def test_nobody_else_writes_after_the_values_were_compared(
    world: World, filled: AlembicApp, make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(filled, ENCRYPT)
    real, dialect = moving.swap, world.engine.dialect.name
    other = make_engine(world.url, **({"connect_args": {"timeout": 0.1}} if dialect == "sqlite" else {}))
    impatient = {"postgresql": "SET lock_timeout = '100ms'", "mariadb": "SET SESSION lock_wait_timeout = 1"}
    refused = []

    def swap(*arguments: Any) -> None:
        with other.connect() as connection:
            if dialect in impatient:
                connection.execute(text(impatient[dialect]))
            try:
                connection.execute(text("UPDATE customers SET email = 'lost' WHERE id = 1"))
                connection.commit()
            except OperationalError:
                refused.append(True)
        real(*arguments)

    monkeypatch.setattr(moving, "swap", swap)
    filled.upgrade(Sealed.metadata)
    assert refused == [True]
    assert opened(world) == expected()


def test_keys_are_counted_and_the_kms_is_asked_once_for_each_tenant(
    world: World, filled: AlembicApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(filled, ENCRYPT[:-1] + ", batch=3)")
    for tenant in ("acme", "glob"):
        world.vault.evict(tenant)
    calls, real = [], type(world.kms).unwrap

    def unwrap(self: Any, key: Any, *arguments: Any) -> bytes:
        calls.append(key.arn)
        return real(self, key, *arguments)

    monkeypatch.setattr(type(world.kms), "unwrap", unwrap)
    filled.upgrade(Sealed.metadata)
    assert sorted(calls) == sorted(world.keys.values())
    for tenant in ("acme", "glob"):
        with world.vault.tenant(tenant) as scope, world.vault._engine.connect() as connection:
            mine = key_use.c.tenant_uid == scope.renew().identity.tenant_uid
            reserved = connection.scalar(select(func.sum(key_use.c.reserved)).where(mine, key_use.c.purpose == "data"))
        assert reserved >= sum(row["tenant_id"] == tenant and row["email"] is not None for row in ROWS)


def test_a_type_that_got_an_index_meanwhile_is_followed(
    world: World, filled: AlembicApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sealed before the migration was ended has no tokens."""
    write(filled, ENCRYPT.replace(KIND, "EncryptedString()"))
    with monkeypatch.context() as patched:
        between(patched, lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            filled.upgrade(Sealed.metadata)
    (filled.folder / "versions" / "r1_by_hand.py").unlink()
    write(filled, ENCRYPT)
    filled.upgrade(Sealed.metadata)
    assert all(parse(value).tokens == 2 for value in stored(world.engine).values() if value is not None)


def test_what_stands_over_the_plaintext_is_named(world: World, app: AlembicApp) -> None:
    class Base(DeclarativeBase):
        pass

    class Over(Base):
        __tablename__ = "customers"
        id: Mapped[int] = mapped_column(primary_key=True)
        tenant_id: Mapped[str] = mapped_column(String(50))
        email: Mapped[str] = mapped_column(String(100))
        note: Mapped[str | None] = mapped_column(String(50))
        __table_args__ = (
            Index("ix_both", "tenant_id", "email"),
            Index("ix_note", "note"),
            UniqueConstraint("email", name="uq_email"),
            CheckConstraint("email <> 'root'", name="ck_email"),
        )

    Base.metadata.create_all(world.engine)
    insert(world.engine, [ROWS[0], ROWS[2]])
    write(app, ENCRYPT)
    with pytest.raises(ConfigurationError) as caught:
        app.upgrade(Sealed.metadata)
    for name in ("ix_both", "uq_email", "ck_email"):
        assert repr(name) in str(caught.value)
    assert "ix_note" not in str(caught.value)
    assert revision(world.engine) is None
    drops = "drops=['ix_both', 'uq_email', 'ck_email']"
    (app.folder / "versions" / "r1_by_hand.py").unlink()
    write(app, ENCRYPT[:-1] + f", {drops})")
    app.upgrade(Sealed.metadata)
    assert opened(world) == {1: ROWS[0]["email"], 3: ROWS[2]["email"]}
    column = next(each for each in inspect(world.engine).get_columns("customers") if each["name"] == "email")
    assert column["nullable"] is False
    assert [each["name"] for each in inspect(world.engine).get_indexes("customers")] == ["ix_note"]


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        ("CREATE TABLE customers (tenant_id VARCHAR(9), email VARCHAR(50), PRIMARY KEY (email))", "the primary key"),
        ("CREATE TABLE customers (tenant_id VARCHAR(9), email VARCHAR(50))", "no primary key"),
        ("CREATE TABLE customers (id INTEGER PRIMARY KEY, email VARCHAR(50))", "no column 'tenant_id'"),
        ("CREATE TABLE customers (id INTEGER PRIMARY KEY, tenant_id VARCHAR(9))", "no column 'email'"),
        (
            "CREATE TABLE customers (id INTEGER PRIMARY KEY, tenant_id VARCHAR(9), email VARCHAR(50), "
            "CONSTRAINT fk FOREIGN KEY (email) REFERENCES people (email))",
            "the foreign key",
        ),
    ],
)
def test_a_table_that_cannot_be_sealed_says_why(world: World, app: AlembicApp, make: str, problem: str) -> None:
    execute(world.engine, "CREATE TABLE people (email VARCHAR(50) PRIMARY KEY)", make)
    write(app, ENCRYPT)
    with pytest.raises(ConfigurationError, match=problem):
        app.upgrade(Sealed.metadata)


def test_what_the_database_makes_of_the_column_is_named(world: World, app: AlembicApp) -> None:
    made = "CREATE TABLE customers (id INTEGER PRIMARY KEY, tenant_id VARCHAR(9), email VARCHAR(50), "
    execute(world.engine, f"{made} domain VARCHAR(50) GENERATED ALWAYS AS (lower(email)) STORED)")
    write(app, ENCRYPT)
    with pytest.raises(ConfigurationError, match=r"the database makes 'domain' of customers\.email"):
        app.upgrade(Sealed.metadata)


def test_a_lost_connection_is_said_and_the_rest_is_done_later(
    postgres_url: str,
    world_on: Callable[..., World],
    make_engine: Callable[..., Engine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = world_on(postgres_url, Plain.metadata)
    insert(world.engine, ROWS)
    app = AlembicApp(tmp_path / "app", make_engine(world.url), {"pii_vault": world.vault})
    write(app, ENCRYPT[:-1] + ", batch=4)")
    real, calls = Rows.write, []

    def lose(self: Any, connection: Any, *arguments: Any, **kw: Any) -> int:
        calls.append(None)
        if len(calls) == 2:
            pid = connection.scalar(text("SELECT pg_backend_pid()"))
            execute(world.engine, f"SELECT pg_terminate_backend({pid})")
        return real(self, connection, *arguments, **kw)

    monkeypatch.setattr(Rows, "write", lose)
    with pytest.raises(ConfigurationError, match=r"table 'customers' cannot be read or written: the connection"):
        app.upgrade(Sealed.metadata)
    app.upgrade(Sealed.metadata)
    assert opened(world) == expected()


def test_an_operation_can_be_given_its_vault(world: World, filled: AlembicApp) -> None:
    filled.options.clear()
    filled.more["vault"] = world.vault
    write(filled, ENCRYPT[:-1] + ", vault=context.config.attributes['vault'])")
    filled.upgrade(Sealed.metadata)
    assert opened(world) == expected()


def test_null_is_refused_where_there_is_to_be_none(world: World, filled: AlembicApp) -> None:
    write(filled, ENCRYPT[:-1] + ", nullable=False)")
    with pytest.raises(BackfillError, match="2 rows of customers have NULL in 'email'"):
        filled.upgrade(Sealed.metadata)
    unchanged(world, filled)
    execute(world.engine, "UPDATE customers SET email = 'x', tenant_id = 'acme' WHERE email IS NULL")
    filled.upgrade(Sealed.metadata)
    column = next(each for each in inspect(world.engine).get_columns("customers") if each["name"] == "email")
    assert column["nullable"] is False


def test_without_a_database_it_is_refused(filled: AlembicApp) -> None:
    write(filled, ENCRYPT, DECRYPT)
    for way in ("head", "r1:base"):
        with pytest.raises(ConfigurationError, match=r"cannot be written as SQL .*alembic upgrade"):
            filled.sql(Sealed.metadata, way)


def test_a_transaction_of_somebody_elses_is_not_committed(
    world: World, filled: AlembicApp, make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    env = ENV.replace(".connect() as", ".begin() as")
    app = AlembicApp(tmp_path / "other", make_engine(world.url), {"pii_vault": world.vault}, env=env)
    write(app, ENCRYPT)
    with pytest.raises(ConfigurationError, match=r"context\.begin_transaction"):
        app.upgrade(Sealed.metadata)
    unchanged(world, filled)


def test_the_only_tenant_needs_no_column(world: World, filled: AlembicApp, request: pytest.FixtureRequest) -> None:
    execute(world.engine, "DELETE FROM customers WHERE tenant_id <> 'acme' OR tenant_id IS NULL")
    only = Vault(world.vault._engine, kms=world.kms, default_tenant="acme")
    request.addfinalizer(only.close)
    filled.options["pii_vault"] = only
    write(filled, ENCRYPT.replace(', tenant_column="tenant_id"', ""))
    filled.upgrade(Sealed.metadata)
    assert opened(world) == expected(("acme",))


def test_no_plaintext_stays_in_the_tables_file(world: World, filled: AlembicApp) -> None:
    canary = "canary-7c1f-in-plaintext@example.com"
    insert(world.engine, [{"id": 200 + n, "tenant_id": "acme", "email": f"{n} {canary}"} for n in range(50)])
    execute(world.engine, "CREATE INDEX ix_plain ON customers (email)")
    assert canary.encode() in contents(world.engine)
    write(filled, f"{ENCRYPT[:-1]}, drops=['ix_plain'])\n{INDEX}")
    filled.upgrade(Sealed.metadata)
    assert opened(world)[201] == f"1 {canary}"
    assert canary.encode() not in contents(world.engine)


def contents(engine: Engine) -> bytes:
    """Return the bytes of the file of a table and of its indexes, after what the docs say to do."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if engine.dialect.name == "sqlite":
            connection.execute(text("VACUUM"))
            return Path(str(engine.url.database)).read_bytes()
        if engine.dialect.name == "postgresql":
            connection.execute(text("VACUUM FULL customers"))
            connection.execute(text("CHECKPOINT"))
            files = text(
                "SELECT pg_read_binary_file(pg_relation_filepath(c.oid)) FROM pg_class c "
                "WHERE c.oid = 'customers'::regclass OR c.oid = "
                "(SELECT reltoastrelid FROM pg_class WHERE oid = 'customers'::regclass) OR c.oid IN "
                "(SELECT indexrelid FROM pg_index WHERE indrelid = 'customers'::regclass)"
            )
            return b"".join(bytes(each) for each in connection.scalars(files))
        connection.execute(text("FLUSH TABLES customers FOR EXPORT"))
        folder = Path(connection.scalar(text("SELECT @@datadir")))
        found = (folder / str(engine.url.database) / "customers.ibd").read_bytes()
        connection.execute(text("UNLOCK TABLES"))
        return found


def test_a_table_can_lie_in_a_schema(
    postgres_url: str, world_on: Callable[..., World], make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    world = world_on(postgres_url)
    execute(world.engine, "CREATE SCHEMA crm", "CREATE TABLE crm.customers (id INT PRIMARY KEY, t TEXT, email TEXT)")
    execute(world.engine, "INSERT INTO crm.customers VALUES (1, 'acme', 'ada')")
    app = AlembicApp(tmp_path / "app", make_engine(world.url), {"pii_vault": world.vault})
    write(
        app,
        'op.encrypt_column("customers", "email", EncryptedString(), tenant_column="t", schema="crm")',
        'op.decrypt_column("customers", "email", EncryptedString(), sa.Text(), tenant_column="t", schema="crm")',
    )
    app.upgrade(Sealed.metadata)
    with world.engine.connect() as connection:
        assert parse(connection.scalar(text("SELECT email FROM crm.customers")))
    app.downgrade(Sealed.metadata)
    with world.engine.connect() as connection:
        assert connection.scalar(text("SELECT email FROM crm.customers")) == "ada"


def test_a_connection_that_looks_elsewhere_is_followed(
    postgres_url: str, world_on: Callable[..., World], make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    """With a search path that env.py has set, as applications with a schema for each customer do."""
    world = world_on(postgres_url)
    execute(world.engine, "CREATE SCHEMA one", "CREATE TABLE one.customers (id INT PRIMARY KEY, t TEXT, email TEXT)")
    execute(world.engine, "INSERT INTO one.customers VALUES (1, 'acme', 'ada')")
    env = ENV.replace(
        "        context.configure(connection",
        "        connection.exec_driver_sql('SET search_path TO one'); connection.commit()\n"
        "        context.configure(connection",
    )
    app = AlembicApp(tmp_path / "app", make_engine(world.url), {"pii_vault": world.vault}, env=env)
    write(app, 'op.encrypt_column("customers", "email", EncryptedString(), tenant_column="t")')
    app.upgrade(Sealed.metadata)
    with world.engine.connect() as connection:
        assert parse(connection.scalar(text("SELECT email FROM one.customers")))


def test_sqlite_keeps_what_refers_to_a_table_and_what_alembic_does_not_know(
    sqlite_url: str, world_on: Callable[..., World], make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    world = world_on(sqlite_url)
    engine = make_engine(sqlite_url)
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys=ON"))
    execute(
        engine,
        "CREATE TABLE customers (id INTEGER PRIMARY KEY, tenant_id VARCHAR(50), email VARCHAR(100) NOT NULL, ssn BLOB)",
        "CREATE INDEX ix_ssn ON customers (substr(ssn, 11, 16))",
        "CREATE TABLE orders (id INTEGER PRIMARY KEY, c INTEGER REFERENCES customers (id) ON DELETE CASCADE)",
        "CREATE TRIGGER changed AFTER UPDATE OF ssn ON customers BEGIN SELECT 1; END",
        "INSERT INTO customers VALUES (1, 'acme', 'ada', NULL)",
        "INSERT INTO orders VALUES (1, 1)",
    )
    app = AlembicApp(tmp_path / "app", engine, {"pii_vault": world.vault})
    write(app, ENCRYPT)
    app.upgrade(Sealed.metadata)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM orders")) == 1
        made = connection.execute(text("SELECT name FROM sqlite_master WHERE type IN ('index', 'trigger')")).scalars()
        assert {"ix_ssn", "changed"} <= set(made)
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    assert parse(stored(engine)[1] or b"").tokens == 2


ASYNC_ENV = """
import asyncio
from alembic import context

def run(connection):
    context.configure(connection=connection, **context.config.attributes["options"])
    with context.begin_transaction():
        context.run_migrations()

async def main():
    async with context.config.attributes["async"].connect() as connection:
        await connection.run_sync(run)

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_an_asynchronous_environment_can_do_it_too(
    kind: str,
    request: pytest.FixtureRequest,
    world_on: Callable[..., World],
    make_engine: Callable[..., Engine],
    make_async_engine: Callable[..., AsyncEngine],
    tmp_path: Path,
) -> None:
    world = world_on(request.getfixturevalue(f"{kind.removesuffix('ql')}_url"), Plain.metadata)
    insert(world.engine, ROWS)
    more = {"async": make_async_engine(async_url(world.url))}
    options = {"pii_vault": world.vault}
    app = AlembicApp(tmp_path / "app", make_engine(world.url), options, env=ASYNC_ENV, more=more)
    write(app, f"{ENCRYPT}\n{INDEX}")
    app.upgrade(Sealed.metadata)
    assert opened(world) == expected()
