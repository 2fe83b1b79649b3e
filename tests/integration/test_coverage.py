"""Where which data key still seals something: counted in the tables, without a KMS and without a value."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Engine,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    event,
    insert,
    literal,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from tests.support.world import World

from pii_vault import EncryptedInteger, EncryptedString, LastChars
from pii_vault.errors import ConfigurationError, TenantNotFoundError
from pii_vault.keys import KeyState
from pii_vault.reencryption import coverage as module
from pii_vault.reencryption.coverage import Coverage, Looked
from pii_vault.reencryption.headers import Other


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    body: Mapped[str | None] = mapped_column(EncryptedString(index=True, tokens={"last4": LastChars(4)}))
    mark: Mapped[int | None] = mapped_column("a mark", EncryptedInteger())


class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    email: Mapped[str | None] = mapped_column(EncryptedString())


class Plain(Base):
    __tablename__ = "plain"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(30))


ACTIVE, DEACTIVATED = KeyState.ACTIVE, KeyState.DEACTIVATED


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def world(request: pytest.FixtureRequest, world_on: Callable[..., World], tmp_path: Path) -> World:
    names = {"sqlite": "sqlite_url", "postgresql": "postgres_url", "mariadb": "mariadb_url"}
    # No key store is on MariaDB.
    keys = {"key_store_url": f"sqlite:///{tmp_path / 'keys.sqlite3'}"} if request.param == "mariadb" else {}
    return world_on(request.getfixturevalue(names[request.param]), Base.metadata, **keys)


@pytest.fixture
def postgres(postgres_url: str, world_on: Callable[..., World]) -> World:
    return world_on(postgres_url, Base.metadata)


def write(world: World, count: int, tenant: str = "acme") -> None:
    with world.session(tenant) as session:
        session.add_all(Note(body=f"note {n}", mark=n if n % 2 else None) for n in range(count))


def coverage(world: World, **options: Any) -> Coverage:
    return world.vault.coverage(**{"metadata": Base.metadata, "engine": world.engine} | options)


def lines(found: Coverage) -> list[tuple[Any, ...]]:
    return [(f"{each.table}.{each.column}", each.tenant, each.version, each.state, each.count) for each in found.stored]


def store_raw(world: World, *values: bytes | str) -> None:
    """Write something past the vault into people.email."""
    raw = Table("people", MetaData(), Column("tenant_id", String(30)), Column("email", LargeBinary))
    with world.engine.begin() as connection:
        for value in values:
            bound = literal(value, Text() if isinstance(value, str) else LargeBinary())
            connection.execute(insert(raw).values(tenant_id="acme", email=bound))


def sealed(world: World) -> bytes:
    """A value of acme's, sealed by its first data key, with two tokens."""
    write(world, 1)
    with world.engine.connect() as connection:
        return bytes(connection.execute(text("SELECT body FROM notes ORDER BY id LIMIT 1")).scalar_one())


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    found: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        found.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    yield found
    event.remove(engine, "before_cursor_execute", note)


def test_values_are_counted_by_column_tenant_and_version(world: World) -> None:
    assert lines(coverage(world)) == []
    write(world, 6)
    write(world, 3, "glob")
    world.vault.rotate("acme")
    write(world, 2)
    with world.session() as session:
        session.add_all(Person(email=email) for email in ("a@example.com", None, None))
    found = coverage(world)
    assert lines(found) == [
        ("notes.body", "acme", 1, DEACTIVATED, 6),
        ("notes.body", "acme", 2, ACTIVE, 2),
        ("notes.body", "glob", 1, ACTIVE, 3),
        ("notes.a mark", "acme", 1, DEACTIVATED, 3),
        ("notes.a mark", "acme", 2, ACTIVE, 1),
        ("notes.a mark", "glob", 1, ACTIVE, 1),
        ("notes.a mark", None, None, Other.NULL, 6),
        ("people.email", "acme", 2, ACTIVE, 1),
        ("people.email", None, None, Other.NULL, 2),
    ]
    assert found.problems == ()
    assert (found.tables, found.estimated) == ((Looked("notes", 1.0), Looked("people", 1.0)), False)
    assert found.stored[0].keyset_id == world.vault._parts.store.load("acme").tenant.identity.keyset_id


def test_the_states_of_keys_are_those_of_the_key_store(world: World) -> None:
    write(world, 1)
    world.vault.rotate("acme")
    write(world, 2)
    world.vault.compromise("acme", 1)
    world.vault.deactivate("acme")
    write(world, 4, "glob")
    found = coverage(world)
    assert lines(found)[:3] == [
        ("notes.body", "acme", 1, KeyState.COMPROMISED, 1),
        ("notes.body", "acme", 2, DEACTIVATED, 2),
        ("notes.body", "glob", 1, ACTIVE, 4),
    ]
    assert [(each.column, each.version) for each in found.problems] == [("body", 1)]


def test_no_kms_is_asked_so_it_counts_for_a_customer_who_has_shut_his_key(world: World) -> None:
    write(world, 2)
    world.vault.evict("acme")
    world.vault.suspend("glob")
    world.kms.disable_key(world.keys["acme"])
    fresh = type(world.vault)(world.vault._engine, kms=Deaf())
    found = fresh.coverage(metadata=Base.metadata, engine=world.engine)
    assert lines(found)[0] == ("notes.body", "acme", 1, ACTIVE, 2)


class Deaf:
    """A KMS that fails whatever it is asked."""

    def __getattr__(self, name: str) -> Any:
        if name in {"check_database", "platform_key"}:
            raise AttributeError(name)
        raise AssertionError(name)


def test_what_no_known_key_has_sealed_is_told_apart(world: World) -> None:
    whole = sealed(world)
    (one, two), keyset = whole[5:7], whole[1:5]
    assert (one, two, whole[9]) == (0, 1, 2)
    plain = "\u00fa plaintext of people"
    store_raw(world, b"", b"\xf7" * 60, plain if world.engine.dialect.name == "sqlite" else plain.encode(), b"ada" * 30)
    store_raw(world, b"\xfa", whole[:37], whole[:69], b"\xfa" + keyset + b"\0\0" + whole[7:])
    store_raw(world, whole[:7] + b"\0" + whole[8:], whole[:8] + b"\0" + whole[9:], whole[:9] + b"\0" + whole[10:])
    store_raw(world, whole[:9] + b"\x12" + whole[10:])
    store_raw(world, b"\xff" + whole[1:], b"\xf8")
    store_raw(world, whole[:70], b"\xfb" + whole[1:])  # as short as can be; bound to its row
    store_raw(world, *[b"\xfa" + keyset + b"\0\x09" + whole[7:]] * 3)
    other = bytes(each ^ 1 for each in keyset)
    store_raw(world, *[b"\xfa" + other + b"\0\x05" + whole[7:]] * 2)
    found = coverage(world)
    assert lines(found)[-6:] == [
        ("people.email", "acme", 1, ACTIVE, 2),
        ("people.email", "acme", 9, Other.UNKNOWN_VERSION, 3),
        ("people.email", None, 5, Other.UNKNOWN_KEYSET, 2),
        ("people.email", None, None, Other.MALFORMED, 8),
        ("people.email", None, None, Other.PLAINTEXT, 4),
        ("people.email", None, None, Other.UNSUPPORTED, 2),
    ]
    assert found.stored[-4].keyset_id == int.from_bytes(other, "big")
    assert [each.state for each in found.problems] == [each.state for each in found.stored[-5:]]


def test_another_applications_values_are_of_an_unknown_keyset(
    world: World, world_on: Callable[..., World], tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = world_on(f"sqlite:///{tmp_path / 'other.sqlite3'}", Base.metadata)
    write(world, 1)
    found = lines(other.vault.coverage(metadata=Base.metadata, engine=world.engine))
    assert found[0] == ("notes.body", None, 1, Other.UNKNOWN_KEYSET, 1)


def test_many_unknown_keysets_are_added_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_NAMED", 3)
    whole = sealed(world)
    store_raw(world, *[b"\xfa" + bytes((0, 0, 0, number)) + whole[5:] for number in range(10)])
    store_raw(world, *[b"\xfa" + b"\0\0\0\0" + whole[5:]] * 5)
    found = [each for each in coverage(world).stored if each.table == "people"]
    assert {(each.tenant, each.state) for each in found} == {(None, Other.UNKNOWN_KEYSET)}
    assert len(found) == 4
    assert sum(each.count for each in found) == 15
    assert [(each.keyset_id, each.version) for each in found[3:]] == [(None, None)]


def test_of_one_tenant_only_its_own_values_are_counted(world: World) -> None:
    write(world, 3)
    write(world, 2, "glob")
    whole = sealed(world)
    store_raw(world, b"plaintext" * 9, b"\xfb" + whole[1:6], b"\xfb\0\0\0\0" + whole[5:], b"p" + whole[1:])
    assert lines(coverage(world, tenant="glob")) == [
        ("notes.body", "glob", 1, ACTIVE, 2),
        ("notes.a mark", "glob", 1, ACTIVE, 1),
    ]
    assert lines(coverage(world, tenant="acme"))[2:] == [("people.email", None, None, Other.MALFORMED, 1)]
    for name in ("nobody", "ACME", "acme "):
        with pytest.raises(TenantNotFoundError, match="no tenant"):
            coverage(world, tenant=name)


def test_each_table_is_one_query_and_no_value_is_fetched(world: World) -> None:
    write(world, 50)
    told: list[tuple[int, int]] = []
    with statements(world.engine) as sent:
        coverage(world, progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 2), (1, 2), (2, 2)]
    counting = [each for each in sent if "FROM notes" in each or "FROM people" in each]
    assert len(counting) == len([each for each in sent if "pii_vault_" not in each]) == 2
    assert ["GROUP BY" in each for each in counting] == [True, True]


def test_a_tenant_that_is_rotated_while_it_is_counted_has_no_unknown_version(world: World) -> None:
    def rotate(done: int, _total: int) -> None:
        if done == 0:
            world.vault.rotate("acme")
            write(world, 1)

    assert lines(coverage(world, progress=rotate)) == [
        ("notes.body", "acme", 2, ACTIVE, 1),
        ("notes.a mark", None, None, Other.NULL, 1),
    ]


def test_tables_that_refer_to_each_other_are_counted_without_a_warning(world: World) -> None:
    circle = MetaData()
    for name, other in (("hens", "eggs"), ("eggs", "hens")):
        key = Column("id", Integer, primary_key=True)
        of: Column[Any] = Column("of", ForeignKey(f"{other}.id", name=f"fk_{name}"))
        Table(name, circle, key, of, Column("secret", EncryptedString()))
    circle.create_all(world.engine)
    with world.vault.tenant("acme"), world.engine.begin() as connection:
        connection.execute(insert(circle.tables["eggs"]).values(id=1, secret="x"))
    assert lines(coverage(world, metadata=circle)) == [("eggs.secret", "acme", 1, ACTIVE, 1)]


@pytest.mark.parametrize("missing", ["table", "column"])
def test_a_table_that_cannot_be_read_is_one_error_that_names_it(world: World, missing: str) -> None:
    other = MetaData()
    Table("notes", other, Column("id", Integer, primary_key=True), Column("body", EncryptedString()))
    name = "elsewhere" if missing == "table" else "people"
    Table(name, other, Column("id", Integer, primary_key=True), Column("secret", EncryptedString()))
    for estimate in (False, True):
        with pytest.raises(ConfigurationError, match=f"table '{name}' cannot be read") as caught:
            coverage(world, metadata=other, estimate=estimate)
        assert (caught.value.__cause__, caught.value.__context__) == (None, None)


def test_a_text_column_that_was_never_migrated_is_named_on_postgresql(postgres: World) -> None:
    with postgres.engine.begin() as connection:
        connection.execute(text("ALTER TABLE people ALTER email TYPE text USING 'x'"))
    with pytest.raises(ConfigurationError, match=r"table 'people' cannot be read: Undefined.*migrate"):
        coverage(postgres)


def test_metadata_without_encrypted_columns_is_refused(world: World) -> None:
    plain = MetaData()
    Table("notes", plain, Column("id", Integer, primary_key=True))
    for metadata in (plain, MetaData()):
        with pytest.raises(ConfigurationError, match="the metadata holds no encrypted column"):
            coverage(world, metadata=metadata)


# Schemas.


def letters(schema: str | None, metadata: MetaData | None = None) -> Table:
    to: Column[Any] = Column("To", EncryptedString(context=f"letters of {schema}"))
    columns = (Column("id", Integer, primary_key=True), Column("tenant_id", String(30)), to)
    return Table("Letters", metadata or MetaData(), *columns, schema=schema)


def test_tables_of_several_schemas_are_told_apart(postgres: World) -> None:
    both = MetaData()
    with postgres.engine.begin() as connection:
        for schema in ("archive", "Other one"):
            connection.execute(text(f'CREATE SCHEMA "{schema}"'))
            letters(schema, both)
        both.create_all(connection)
    for count, table in enumerate(both.tables.values(), start=1):
        with postgres.vault.tenant("acme"), postgres.engine.begin() as connection:
            connection.execute(insert(table), [{"tenant_id": "acme", "To": "ada"}] * count)
    for estimate in (False, True):
        assert lines(coverage(postgres, metadata=both, estimate=estimate)) == [
            ("archive.Letters.To", "acme", 1, ACTIVE, 1),
            ("Other one.Letters.To", "acme", 1, ACTIVE, 2),
        ]


def test_an_engines_schema_map_is_followed_also_when_a_key_is_destroyed(
    postgres: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table of the same name in the default schema is another one."""
    table = letters(None)
    with postgres.engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA archive"))
        table.create(connection)
    mapped = postgres.engine.execution_options(schema_translate_map={None: "archive"})
    table.metadata.create_all(mapped)
    with postgres.vault.tenant("acme"), mapped.begin() as connection:
        connection.execute(insert(table).values(id=1, tenant_id="acme", To="ada"))
    for estimate in (False, True):
        found = coverage(postgres, metadata=table.metadata, engine=mapped, estimate=estimate)
        assert lines(found) == [("Letters.To", "acme", 1, ACTIVE, 1)]
    with monkeypatch.context() as patched:
        patched.setattr(module, "SAMPLE", 4096)  # half of its page; the other table has none
        found_in = coverage(postgres, metadata=table.metadata, engine=mapped, estimate=True)
    assert found_in.tables == (Looked("Letters", 0.5),)
    assert module.values_under(mapped, table.metadata, found.stored[0].keyset_id or 0, 1) == {"Letters.To": 1}
    assert module.values_under(postgres.engine, table.metadata, found.stored[0].keyset_id or 0, 1) == {}


def test_on_sqlite_an_attached_database_is_a_schema(sqlite_url: str, world_on: Callable[..., World]) -> None:
    world = world_on(sqlite_url, Base.metadata)
    table = letters("main")
    table.create(world.engine)
    with world.vault.tenant("acme"), world.engine.begin() as connection:
        connection.execute(insert(table).values(id=1, tenant_id="acme", To="ada"))
    assert lines(coverage(world, metadata=table.metadata)) == [("main.Letters.To", "acme", 1, ACTIVE, 1)]


# Estimates.


def multiply(engine: Engine, rows: int) -> None:
    """Copy the first row of each tenant and version of notes until there are so many rows."""
    copies = text(
        'INSERT INTO notes (tenant_id, body, "a mark") SELECT n.tenant_id, n.body, n."a mark" '
        "FROM (SELECT * FROM notes ORDER BY id) n, generate_series(1, :times)"
    )
    with engine.begin() as connection:
        there = connection.execute(text("SELECT count(*) FROM notes")).scalar_one()
        connection.execute(copies, {"times": rows // there - 1})


def test_an_estimate_looks_at_a_sample_says_so_and_is_near(postgres: World, monkeypatch: pytest.MonkeyPatch) -> None:
    write(postgres, 3)
    write(postgres, 1, "glob")
    multiply(postgres.engine, 40_000)
    exact = coverage(postgres)
    monkeypatch.setattr(module, "SAMPLE", 200 * 8192)
    with statements(postgres.engine) as sent:
        found = coverage(postgres, estimate=True)
    assert [each for each in sent if "TABLESAMPLE system" in each] == [each for each in sent if "FROM notes AS" in each]
    assert found.estimated
    notes, people = found.tables
    assert (notes.table, people) == ("notes", Looked("people", 1.0))
    assert 0.05 < notes.share < 0.5
    assert [line[:4] for line in lines(found)] == [line[:4] for line in lines(exact)]
    total = sum(each.count for each in exact.stored if each.column == "body")
    for near, each in zip(found.stored, exact.stored, strict=True):
        assert abs(near.count - each.count) < 0.5 * total, each  # seven standard deviations
    with postgres.engine.begin() as connection:
        connection.execute(text("ALTER TABLE notes RENAME TO heap"))
        connection.execute(text("CREATE TABLE notes (LIKE heap) PARTITION BY RANGE (id)"))
        connection.execute(text("ALTER TABLE notes ATTACH PARTITION heap FOR VALUES FROM (0) TO (1000000)"))
    assert coverage(postgres, estimate=True).tables[0] == notes
    with postgres.engine.begin() as connection:
        connection.execute(text("ALTER TABLE notes RENAME TO parts"))
        connection.execute(text("CREATE VIEW notes AS SELECT * FROM parts"))
    assert lines(coverage(postgres, estimate=True)) == lines(exact)


def test_all_columns_of_a_table_are_estimated_on_the_same_pages(
    postgres: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(postgres, 2)
    multiply(postgres.engine, 10_000)
    monkeypatch.setattr(module, "SAMPLE", 20 * 8192)
    found = coverage(postgres, estimate=True)
    body, mark, null = (each.count for each in found.stored)
    assert abs(body - mark - null) <= 1  # each is rounded
    assert found.estimated


def test_an_estimate_of_a_small_table_or_on_another_database_is_exact(world: World) -> None:
    write(world, 3)
    found = coverage(world, estimate=True)
    assert found == coverage(world)
    assert not found.estimated


@pytest.mark.parametrize("world", ["sqlite", "mariadb"], indirect=True)
def test_where_no_sample_can_be_taken_everything_is_counted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLE", 1)
    write(world, 3)
    with statements(world.engine) as sent:
        found = coverage(world, estimate=True)
    assert found == coverage(world)
    assert not any("SAMPLE" in each.upper() for each in sent)
