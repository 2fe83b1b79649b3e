"""The guard: triggers that keep a sealed column and its plaintext the same, also against who does not know of both.

Whoever writes both columns writes them in one statement, and a sealed value is other bytes each time. So a statement
that changes one and leaves the other was written by somebody who knows only the one. (Only re-encryption changes the
sealed value alone, and it stays the same value.)
"""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum
from typing import Final

from sqlalchemy import Connection, Dialect, text

from ..errors import ConfigurationError
from .columns import Pair

DIALECTS: Final = ("postgresql", "sqlite", "mysql", "mariadb")

_MESSAGE: Final = 128
"""How long a message of MariaDB's may be."""

_BEFORE_EACH_WRITE: Final = 1 | 2 | 4 | 16
"""What PostgreSQL calls a trigger for each row, before INSERT or UPDATE."""

_EACH: Final = " FOR EACH ROW "
"""What stands before the body of a trigger."""


class Mode(StrEnum):
    """What a guard does."""

    EMPTIES_SEALED = "empties the sealed column"
    """Who writes the plaintext alone empties the sealed column; who writes the sealed column alone is refused."""

    REFUSES = "refuses"
    """Who writes the plaintext alone is refused, and so is a row that has only one of the two."""

    EMPTIES_PLAINTEXT = "empties the plaintext"
    """Who writes the sealed column alone empties the plaintext; who writes the plaintext alone is refused."""

    REFILLS = "refills"
    """As `REFUSES`, but an empty plaintext may be filled: on the way back."""


class Guard:
    """The guard of a pair of columns.

    Args:
        dialect: Of the database.
        pair: The columns.
        key: The names of the primary key's columns.

    Raises:
        ConfigurationError: there is none for such a database.
    """

    def __init__(self, dialect: Dialect, pair: Pair, key: tuple[str, ...]) -> None:
        if dialect.name not in DIALECTS:
            raise ConfigurationError(
                f"a column is not adopted on {dialect.name}", hint="seal it in a migration: op.encrypt_column"
            )
        self._dialect: Final = dialect.name
        self._pair: Final = pair
        self._preparer: Final = dialect.identifier_preparer
        self._schema: Final = f"{self._quote(pair.schema)}." if pair.schema else ""
        self.table: Final = f"{self._schema}{self._quote(pair.table)}"
        self._key: Final = [self._quote(each) for each in key]
        self.name: Final = _name(pair)

    def install(self, connection: Connection, mode: Mode) -> None:
        """Put the guard there, or let it do something else. Others never find it missing.

        On PostgreSQL no lock is taken where it is there already: what began before may still do as it did.
        """
        if self._dialect == "postgresql":
            there = self._found_function(connection) is not None
            _run(connection, self._function(mode))
            if not there:
                self._drop_trigger(connection)  # one that was switched off, or is another one
                _run(connection, self._trigger())
            return
        if self._dialect != "mariadb":  # which is the only one that replaces
            self.remove(connection)
        for statement in self._bodies(mode).values():
            _run(connection, statement)

    def remove(self, connection: Connection) -> None:
        """Take the guard away."""
        if self._dialect == "postgresql":
            self._drop_trigger(connection)
            _run(connection, f"DROP FUNCTION IF EXISTS {self._schema}{self.name}()")
            return
        for name in self._names():
            _run(connection, f"DROP TRIGGER IF EXISTS {self._schema}{name}")

    def found(self, connection: Connection) -> Mode | None:
        """Return what the guard that is there does; None where there is none, or another one."""
        for mode in Mode:
            if self._is(connection, mode):
                return mode
        return None

    def _is(self, connection: Connection, mode: Mode) -> bool:
        if self._dialect == "postgresql":
            return self._found_function(connection) == self._body(mode)
        wanted = self._bodies(mode)
        if self._dialect == "sqlite":
            master = f"{self._schema}sqlite_master"
            query = text(f"SELECT name, sql FROM {master} WHERE type = 'trigger'")  # noqa: S608 - our own names
            found = {name: sql for name, sql in connection.execute(query) if name in self._names()}
            return found == wanted
        query = text(
            "SELECT TRIGGER_NAME, ACTION_STATEMENT FROM information_schema.TRIGGERS "
            "WHERE TRIGGER_SCHEMA = COALESCE(:schema, DATABASE()) AND EVENT_OBJECT_TABLE = :of"
        )
        rows = connection.execute(query, {"schema": self._pair.schema, "of": self._pair.table})
        found = {name: sql for name, sql in rows if name in self._names()}
        return found == {name: sql[sql.index(_EACH) + len(_EACH) :] for name, sql in wanted.items()}

    def _names(self) -> list[str]:
        return [f"{self.name}_{number}" for number in range(3)]

    def _bodies(self, mode: Mode) -> dict[str, str]:
        made = self._sqlite(mode) if self._dialect == "sqlite" else self._mariadb(mode)
        return dict(zip(self._names(), made, strict=False))

    # What all of them say.

    def _is_refused(self, mode: Mode, *, inserts: bool) -> str:
        """Return the condition, over NEW and OLD, under which a row is refused."""
        plain, sealed = self._new(self._pair.plaintext), self._new(self._pair.sealed)
        no_plain, no_sealed = f"{plain} IS NULL", f"{sealed} IS NULL"
        alone = "" if inserts else self._plaintext_alone()
        if mode is Mode.EMPTIES_SEALED:
            sealed_only = f"({no_plain} AND NOT {no_sealed})"
            return sealed_only if inserts else f"({sealed_only} AND NOT {alone})"
        plaintext_only = f"(NOT {no_plain} AND {no_sealed})"
        if mode is Mode.EMPTIES_PLAINTEXT:
            if inserts:
                return plaintext_only
            # Who empties the sealed column alone empties the plaintext with it.
            return f"(({plaintext_only} AND NOT {self._sealed_alone()}) OR ({alone} AND NOT {no_plain}))"
        one_only = f"({plaintext_only} OR ({no_plain} AND NOT {no_sealed}))"
        if inserts:
            return one_only
        if mode is Mode.REFILLS:  # rows that are not refilled yet may go on having the one, and be changed elsewhere
            written = f"({one_only} AND {self._changed(self._pair.sealed)})"
            emptied = f"({one_only} AND {self._changed(self._pair.plaintext, text=True)})"
            return f"({written} OR {emptied} OR ({alone} AND NOT {self._old(self._pair.plaintext)} IS NULL))"
        return f"({one_only} OR {alone})"

    def _plaintext_alone(self) -> str:
        return f"({self._changed(self._pair.plaintext, text=True)} AND NOT {self._changed(self._pair.sealed)})"

    def _sealed_alone(self) -> str:
        return f"({self._changed(self._pair.sealed)} AND NOT {self._changed(self._pair.plaintext, text=True)})"

    def _quote(self, name: str) -> str:
        quoted = self._preparer.quote(name)
        # For statements with parameters, in which a driver looks for its marks. Ours have none.
        return quoted.replace("%%", "%") if self._preparer._double_percents else quoted

    def _new(self, column: str) -> str:
        return f"NEW.{self._quote(column)}"

    def _old(self, column: str) -> str:
        return f"OLD.{self._quote(column)}"

    def _changed(self, column: str, *, text: bool = False) -> str:
        """Return the condition that other bytes stand in a column: no collation and no rounding makes them equal."""
        new, old = self._new(column), self._old(column)
        if self._dialect == "postgresql":
            exact = '::text COLLATE "C"' if text else ""
            return f"({new}{exact} IS DISTINCT FROM {old}{exact})"
        if self._dialect == "sqlite":
            return f"({new} COLLATE BINARY IS NOT {old} COLLATE BINARY)"
        # As text the one, which tells apart what a collation does not; as they are the others: FLOAT is cut as text.
        return f"(NOT (CAST({new} AS BINARY) <=> CAST({old} AS BINARY) AND {new} <=> {old}))"

    def _refusal(self, mode: Mode) -> str:
        pair = self._pair
        known = f"{pair.table_name}: {pair.plaintext} and {pair.sealed} are written together"
        if mode is Mode.EMPTIES_PLAINTEXT:
            known = f"{pair.table_name}: {pair.plaintext} is not written without {pair.sealed}"
        said = f"pii_vault: {known}"
        if self._dialect in ("mysql", "mariadb"):
            said = said[:_MESSAGE].replace("\\", "\\\\")
        return said.replace("'", "''")

    def _emptied(self, mode: Mode) -> tuple[str, str] | None:
        """Return which column is emptied, and when; None if none is."""
        if mode is Mode.EMPTIES_SEALED:
            return self._pair.sealed, self._plaintext_alone()
        if mode is Mode.EMPTIES_PLAINTEXT:
            return self._pair.plaintext, self._sealed_alone()
        return None

    # PostgreSQL: one function, which is replaced, behind one trigger.

    def _body(self, mode: Mode) -> str:
        emptied = self._emptied(mode)
        empty = f"    IF {emptied[1]} THEN\n      {self._new(emptied[0])} := NULL;\n    END IF;\n" if emptied else ""
        raises = f"RAISE EXCEPTION '{self._refusal(mode).replace('%', '%%')}' USING ERRCODE = '23514'"
        return f"""
BEGIN
  IF TG_OP = 'UPDATE' THEN
    IF {self._is_refused(mode, inserts=False)} THEN
      {raises};
    END IF;
{empty}  ELSIF {self._is_refused(mode, inserts=True)} THEN
    {raises};
  END IF;
  RETURN NEW;
END
"""

    def _function(self, mode: Mode) -> str:
        body = self._body(mode)
        return (
            f"CREATE OR REPLACE FUNCTION {self._schema}{self.name}() RETURNS trigger LANGUAGE plpgsql "
            f"AS $pii_vault${body}$pii_vault$"
        )

    def _trigger(self) -> str:
        pair = self._pair
        columns = f"{self._quote(pair.plaintext)}, {self._quote(pair.sealed)}"
        return (
            f"CREATE TRIGGER {self.name} BEFORE INSERT OR UPDATE OF {columns} ON {self.table} "
            f"FOR EACH ROW EXECUTE FUNCTION {self._schema}{self.name}()"
        )

    def _found_function(self, connection: Connection) -> str | None:
        """Return what the trigger runs; None where there is none, or one that is not run as ours is."""
        query = text(
            "SELECT p.prosrc FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid "
            "WHERE t.tgname = :name AND t.tgrelid = to_regclass(:of) "
            "AND t.tgenabled IN ('O', 'A') AND t.tgtype = :type AND t.tgqual IS NULL "
            "AND (SELECT array_agg(a.attname::text ORDER BY a.attname::text) FROM pg_attribute a "
            "WHERE a.attrelid = t.tgrelid AND a.attnum = ANY (t.tgattr::int2[])) = "
            "(SELECT array_agg(each ORDER BY each) FROM unnest(ARRAY[:plaintext, :sealed]::text[]) each)"
        )
        columns = {"plaintext": self._pair.plaintext, "sealed": self._pair.sealed}
        found: str | None = connection.scalar(
            query, {"name": self.name, "of": self.table, "type": _BEFORE_EACH_WRITE, **columns}
        )
        return found

    def _drop_trigger(self, connection: Connection) -> None:
        # Asked for first: DROP TRIGGER IF EXISTS would keep readers out as well.
        query = text("SELECT count(*) FROM pg_trigger WHERE tgname = :name AND tgrelid = to_regclass(:of)")
        if connection.scalar(query, {"name": self.name, "of": self.table}):
            _run(connection, f"DROP TRIGGER {self.name} ON {self.table}")

    # SQLite: a trigger cannot change the row, so one behind the statement does.

    def _sqlite(self, mode: Mode) -> list[str]:
        pair, names = self._pair, self._names()
        columns = f"{self._quote(pair.plaintext)}, {self._quote(pair.sealed)}"
        refuse = f"BEGIN SELECT RAISE(ABORT, '{self._refusal(mode)}'); END"
        made = [
            f"CREATE TRIGGER {self._schema}{names[0]} BEFORE INSERT ON {self._quote(pair.table)} FOR EACH ROW "
            f"WHEN {self._is_refused(mode, inserts=True)} {refuse}",
            f"CREATE TRIGGER {self._schema}{names[1]} BEFORE UPDATE OF {columns} ON {self._quote(pair.table)} "
            f"FOR EACH ROW WHEN {self._is_refused(mode, inserts=False)} {refuse}",
        ]
        emptied = self._emptied(mode)
        if emptied:
            mine = " AND ".join(f"{each} = NEW.{each}" for each in self._key)
            of = self._quote(pair.table)
            update = f"UPDATE {of} SET {self._quote(emptied[0])} = NULL WHERE {mine}"  # noqa: S608 - no value is in it
            made.append(
                f"CREATE TRIGGER {self._schema}{names[2]} AFTER UPDATE OF {columns} ON {self._quote(pair.table)} "
                f"FOR EACH ROW WHEN {emptied[1]} AND {self._new(emptied[0])} IS NOT NULL "
                f"BEGIN {update}; END"
            )
        return made

    # MariaDB and MySQL.

    def _mariadb(self, mode: Mode) -> list[str]:
        names = self._names()
        create = "CREATE OR REPLACE TRIGGER" if self._dialect == "mariadb" else "CREATE TRIGGER"
        refuse = f"SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = '{self._refusal(mode)}'"
        emptied = self._emptied(mode)
        empty = f" IF {emptied[1]} THEN SET {self._new(emptied[0])} = NULL; END IF;" if emptied else ""
        return [
            f"{create} {self._schema}{names[0]} BEFORE INSERT ON {self.table}{_EACH}BEGIN "
            f"IF {self._is_refused(mode, inserts=True)} THEN {refuse}; END IF; END",
            f"{create} {self._schema}{names[1]} BEFORE UPDATE ON {self.table}{_EACH}BEGIN "
            f"IF {self._is_refused(mode, inserts=False)} THEN {refuse}; END IF;{empty} END",
        ]


def _name(pair: Pair) -> str:
    """Return a name that needs no quotes, is short enough everywhere, and is no other pair's."""
    digest = hashlib.sha256(repr((pair.table, pair.plaintext)).encode()).hexdigest()
    readable = re.sub(r"[^a-z0-9]+", "_", f"{pair.table}_{pair.plaintext}".lower())
    return f"pii_vault_adopts_{readable[:30]}_{digest[:8]}"


def _run(connection: Connection, statement: str) -> None:
    """Run a statement as it is: a driver that is given no parameters looks for no marks of them."""
    connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
