"""The guard of an adoption: who may write which of the two columns, by mode, on each database, under any name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

import pytest
from sqlalchemy import (
    Column,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    create_engine,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.types import TypeEngine
from tests.support.adopting import DATABASES

from pii_vault.adoption.columns import Pair
from pii_vault.adoption.guard import Guard, Mode

OLD, NEW = b"\xfaold", b"\xfanew"
REFUSED: Final = "refused"
EMPTIES_SEALED, REFUSES, EMPTIES_PLAINTEXT, REFILLS = Mode

# What is written into a new row, and what stands there then.
INSERTS: Final = {
    ("p", None): {
        EMPTIES_SEALED: ("p", None),
        REFUSES: REFUSED,
        EMPTIES_PLAINTEXT: REFUSED,
        REFILLS: REFUSED,
    },
    (None, NEW): {
        EMPTIES_SEALED: REFUSED,
        REFUSES: REFUSED,
        EMPTIES_PLAINTEXT: (None, NEW),
        REFILLS: REFUSED,
    },
    ("p", NEW): dict.fromkeys(Mode, ("p", NEW)),
    (None, None): dict.fromkeys(Mode, (None, None)),
}

# What stands in a row, what is set, and what stands there then.
UPDATES: Final[list[tuple[tuple[Any, Any], dict[str, Any], dict[Mode, Any]]]] = [
    (
        ("p", OLD),
        {"plain": "P"},
        {EMPTIES_SEALED: ("P", None), REFUSES: REFUSED, EMPTIES_PLAINTEXT: REFUSED, REFILLS: REFUSED},
    ),
    (
        ("p", OLD),
        {"plain": "p "},
        {EMPTIES_SEALED: ("p ", None), REFUSES: REFUSED, EMPTIES_PLAINTEXT: REFUSED, REFILLS: REFUSED},
    ),
    (
        ("p", OLD),
        {"plain": None},
        {EMPTIES_SEALED: (None, None), REFUSES: REFUSED, EMPTIES_PLAINTEXT: (None, OLD), REFILLS: REFUSED},
    ),
    (
        ("p", OLD),
        {"sealed": NEW},  # re-encryption
        {EMPTIES_SEALED: ("p", NEW), REFUSES: ("p", NEW), EMPTIES_PLAINTEXT: (None, NEW), REFILLS: ("p", NEW)},
    ),
    (
        ("p", OLD),
        {"sealed": None},
        {EMPTIES_SEALED: ("p", None), REFUSES: REFUSED, EMPTIES_PLAINTEXT: (None, None), REFILLS: REFUSED},
    ),
    (("p", OLD), {"plain": "q", "sealed": NEW}, dict.fromkeys(Mode, ("q", NEW))),
    (("p", OLD), {"plain": None, "sealed": None}, dict.fromkeys(Mode, (None, None))),
    (("p", OLD), {"plain": "p", "sealed": OLD}, dict.fromkeys(Mode, ("p", OLD))),
    (("p", OLD), {"more": "x"}, dict.fromkeys(Mode, ("p", OLD))),
    (
        (None, OLD),  # on the way back
        {"plain": "p"},
        {EMPTIES_PLAINTEXT: REFUSED, REFUSES: REFUSED, REFILLS: ("p", OLD)},
    ),
    ((None, OLD), {"more": "x"}, {EMPTIES_PLAINTEXT: (None, OLD), REFILLS: (None, OLD)}),
    ((None, OLD), {"sealed": NEW}, {EMPTIES_PLAINTEXT: (None, NEW), REFILLS: REFUSED}),
    (("p", None), {"plain": "q"}, {EMPTIES_SEALED: ("q", None)}),
    (("p", None), {"sealed": NEW}, {EMPTIES_SEALED: ("p", NEW)}),
    ((None, None), {"sealed": NEW}, {EMPTIES_SEALED: REFUSED, REFUSES: REFUSED, EMPTIES_PLAINTEXT: (None, NEW)}),
    ((None, None), {"plain": "q"}, {EMPTIES_SEALED: ("q", None), REFUSES: REFUSED, EMPTIES_PLAINTEXT: REFUSED}),
]


class Guarded:
    """A table with a pair of columns, and the guard of it."""

    def __init__(
        self,
        engine: Engine,
        name: str = "people",
        columns: tuple[str, str] = ("plain", "sealed"),
        key: tuple[str, ...] = ("id",),
        kind: TypeEngine[Any] | None = None,
        schema: str | None = None,
    ) -> None:
        self.engine = engine
        self.columns = columns
        self.table = Table(
            name,
            MetaData(),
            *(Column(each, Integer, primary_key=True, autoincrement=False) for each in key),
            # MariaDB's collations ignore case and blanks by themselves.
            Column(columns[0], kind or String(20, "NOCASE" if engine.dialect.name == "sqlite" else None)),
            Column(columns[1], LargeBinary),
            Column("more", String(20)),
            schema=schema,
        )
        self.table.create(engine)
        self.guard = Guard(engine.dialect, Pair("c", name, schema, *columns, None, None), key)
        self._rows = 0

    def install(self, mode: Mode) -> None:
        with self.engine.begin() as connection:
            self.guard.install(connection, mode)
        with self.engine.begin() as connection:
            assert self.guard.found(connection) is mode

    def remove(self) -> None:
        with self.engine.begin() as connection:
            self.guard.remove(connection)
        with self.engine.begin() as connection:
            assert self.guard.found(connection) is None

    def insert(self, plain: Any, sealed: bytes | None) -> Any:
        self._rows += 1
        values = dict(zip(self.columns, (plain, sealed), strict=True))
        keys = {each.name: self._rows for each in self.table.primary_key}
        return self._done(insert(self.table).values({**keys, **values, "more": "-"}))

    def update(self, **values: Any) -> Any:
        names = dict(zip(("plain", "sealed"), self.columns, strict=True))
        statement = update(self.table).where(*(each == self._rows for each in self.table.primary_key))
        return self._done(statement.values({names.get(name, name): value for name, value in values.items()}))

    def _done(self, statement: Any) -> Any:
        with suppress(DBAPIError), self.engine.begin() as connection:
            connection.execute(statement)
            found = select(*(self.table.c[each] for each in self.columns))
            row = connection.execute(found.where(*(each == self._rows for each in self.table.primary_key))).one()
            return row[0], None if row[1] is None else bytes(row[1])
        return REFUSED


@pytest.fixture(params=list(DATABASES))
def engine(request: pytest.FixtureRequest, make_engine: Callable[..., Engine]) -> Engine:
    return make_engine(request.getfixturevalue(DATABASES[request.param]))


def test_every_write_in_every_mode(engine: Engine) -> None:
    rows, wrong = Guarded(engine), []
    for written, expected in INSERTS.items():
        for mode in Mode:
            rows.install(mode)
            found = rows.insert(*written)
            if found != expected[mode]:
                wrong.append((mode, "insert", written, found))
    for before, values, wanted in UPDATES:
        for mode, after in wanted.items():
            rows.remove()
            assert rows.insert(*before) == before
            rows.install(mode)
            found = rows.update(**values)
            if found != after:
                wrong.append((mode, before, values, found))
    assert wrong == []
    rows.remove()


NAMES: Final = {
    "reserved": {"name": "order", "columns": ("E-Mail", "select")},
    "percent": {"name": "100%", "columns": ("a%b", "it's")},
    "capitals": {"name": "People", "columns": ("Email", "EmailSealed")},
    "long": {"name": "t" * 60, "columns": ("p" * 60, "s" * 60)},
    "awkward": {"name": "BEGIN FOR EACH ROW", "columns": ("Straße", 'say "x"')},
    "composite": {"name": "parts", "key": ("id", "part", "Other-Key")},
}


def test_any_name_and_any_key(engine: Engine) -> None:
    for how in NAMES:
        options: Any = NAMES[how]
        rows = Guarded(engine, **options)
        for mode in Mode:
            rows.install(mode)
            assert rows.insert("p", OLD) == ("p", OLD), how
            assert rows.update(plain="P") == (("P", None) if mode is EMPTIES_SEALED else REFUSED), how
        rows.remove()
        assert rows.update(sealed=None)[1] is None, how


def test_guards_of_names_that_read_the_same_are_two(engine: Engine) -> None:
    one, two = Guarded(engine, "a_b", ("c", "s")), Guarded(engine, "a", ("b_c", "s"))
    one.install(EMPTIES_SEALED)
    two.install(REFUSES)
    assert one.insert("p", OLD) == ("p", OLD)
    assert one.update(plain="q") == ("q", None)
    with engine.connect() as connection:
        assert one.guard.found(connection) is EMPTIES_SEALED


def test_numbers_that_are_the_same_as_text_are_not_the_same_on_mariadb(
    mariadb_url: str, make_engine: Callable[..., Engine]
) -> None:
    from sqlalchemy.dialects.mysql import FLOAT

    rows = Guarded(make_engine(mariadb_url), kind=FLOAT())
    rows.install(EMPTIES_SEALED)
    rows.insert(123456.75, OLD)
    assert rows.update(plain=123456.875)[1] is None


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        ("json", '{"a": 1}', '{"a":1}'),
        ("jsonb", '{"a": 1}', '{"a": 2}'),
        ("numeric", "1.1", "1.10"),
        ("bytea", "\\x00", "\\x01"),
        ("timestamptz", "2026-01-01 00:00+00", "2026-01-01 00:00:00.000001+00"),
        ("text[]", "{a}", "{A}"),
        ("shouted", "a", "A"),
        ("point", "(1,1)", "(1,2)"),
    ],
)
def test_every_type_of_postgresql(shared_postgres: Engine, kind: str, before: str, after: str) -> None:
    with shared_postgres.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS app.people"))
        connection.execute(text(f"CREATE TABLE app.people (id int PRIMARY KEY, plain {kind}, sealed bytea)"))
        guard = Guard(connection.dialect, Pair("c", "people", "app", "plain", "sealed", None, None), ("id",))
        guard.install(connection, EMPTIES_SEALED)
        connection.execute(text(f"INSERT INTO app.people VALUES (1, CAST(:b AS {kind}), '\\xfa')"), {"b": before})
        for value, left in ((before, 1), (after, 0)):
            connection.execute(text(f"UPDATE app.people SET plain = CAST(:v AS {kind})"), {"v": value})
            assert connection.scalar(text("SELECT count(sealed) FROM app.people")) == left
        assert guard.found(connection) is EMPTIES_SEALED


@pytest.fixture(scope="module")
def shared_postgres(postgres_server: Any) -> Iterator[Engine]:
    engine = create_engine(postgres_server.url(postgres_server.create_database()))
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA app"))
        connection.execute(text("CREATE DOMAIN shouted AS varchar(20) NOT NULL"))
    yield engine
    engine.dispose()


@pytest.mark.parametrize(
    "how",
    [
        "ALTER TABLE app.people DISABLE TRIGGER {name}",
        "ALTER TABLE app.people ENABLE REPLICA TRIGGER {name}",
        "DROP TRIGGER {name} ON app.people",
        "CREATE OR REPLACE FUNCTION app.{name}() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "DROP TRIGGER {name} ON app.people; CREATE TRIGGER {name} BEFORE UPDATE OF plain ON app.people FOR EACH ROW "
        "EXECUTE FUNCTION app.{name}()",
        "DROP TRIGGER {name} ON app.people; CREATE TRIGGER {name} BEFORE INSERT OR UPDATE OF plain ON app.people "
        "FOR EACH ROW EXECUTE FUNCTION app.{name}()",
        "DROP TRIGGER {name} ON app.people; CREATE TRIGGER {name} BEFORE INSERT OR UPDATE OF plain, sealed "
        "ON app.people FOR EACH ROW WHEN (false) EXECUTE FUNCTION app.{name}()",
    ],
)
def test_a_guard_that_was_changed_by_hand_is_none_and_is_put_back(shared_postgres: Engine, how: str) -> None:
    pair = Pair("c", "people", "app", "plain", "sealed", None, None)
    with shared_postgres.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS app.people"))
        connection.execute(text("CREATE TABLE app.people (id int PRIMARY KEY, plain text, sealed bytea)"))
        guard = Guard(connection.dialect, pair, ("id",))
        guard.install(connection, REFUSES)
        assert guard.found(connection) is REFUSES
        connection.exec_driver_sql(how.format(name=guard.name))
        assert guard.found(connection) is None
        guard.install(connection, REFUSES)
        assert guard.found(connection) is REFUSES
