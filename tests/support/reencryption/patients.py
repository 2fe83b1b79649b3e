"""The application: one table whose values can be worked out again, and a log of every UPDATE by the database itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import DateTime, Engine, Integer, String, create_engine, func, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from pii_vault import AwsKms, EncryptedInteger, EncryptedString, Vault

TENANT: Final = "acme"
COLUMNS: Final = ("email", "note", "age")


class Base(DeclarativeBase):
    pass


class Patient(Base):
    __tablename__ = "patients"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tenant_id: Mapped[str] = mapped_column(String(30))
    email: Mapped[str] = mapped_column(EncryptedString(index=True))
    note: Mapped[str | None] = mapped_column(EncryptedString())
    age: Mapped[int] = mapped_column(EncryptedInteger())
    written_by: Mapped[str] = mapped_column(String(30), default="")
    turn: Mapped[int] = mapped_column(Integer, default=0)
    changed: Mapped[datetime] = mapped_column(DateTime, default=func.now(), onupdate=func.now())
    revision: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": revision}


Turns = tuple[int, ...]
"""In which turn of its writer each column of a row was written last, in the order of `COLUMNS`."""

FIRST: Final[Turns] = (0, 0, 0)


def value(number: int, column: str, turn: int) -> Any:
    """Return what a row's writer writes into a column in a turn."""
    if column == "email":
        return f"{number}.{turn}@example.com"
    if column == "age":
        return number * 1_000_000 + turn
    return None if turn % 7 == 3 else f"note {turn} of {number}" + "." * (turn % 50)


def content(number: int, turns: Turns) -> tuple[Any, ...]:
    """Return what a row holds after these turns."""
    return tuple(value(number, *each) for each in zip(COLUMNS, turns, strict=True))


@dataclass(frozen=True)
class Place:
    """Where everything is, for every process: the database, and how the KMS is reached."""

    url: str
    environment: Mapping[str, str]
    platform_key: str
    ttl: float


@dataclass(frozen=True)
class Application:
    """A vault, an attached engine and sessions, in one process."""

    vault: Vault
    engine: Engine
    sessions: sessionmaker[Session]

    def close(self) -> None:
        self.vault.close()
        self.engine.dispose()


def open_application(place: Place, kms: AwsKms | None = None) -> Application:
    """Open the application; a process of its own, which brings no KMS, reaches it by its environment."""
    if kms is None:
        os.environ.update(place.environment)
    vault = Vault(place.url, kms=kms or AwsKms(), platform_key=place.platform_key, ttl=place.ttl)
    engine = create_engine(place.url)
    sessions = sessionmaker(engine)
    vault.attach(engine, sessions, tenant_column="tenant_id")
    return Application(vault, engine, sessions)


# The log is written in the transaction of the UPDATE that it is about. Who writes as the application says its turn.

_LOG: Final = (
    """
    CREATE FUNCTION version_of(sealed bytea) RETURNS integer LANGUAGE sql IMMUTABLE
    RETURN get_byte(sealed, 5) * 256 + get_byte(sealed, 6)
    """,
    """
    CREATE TABLE updates (
        id integer, turn integer, by_application boolean, plain_changed boolean,
        before integer[], after integer[], rewritten boolean[]
    )
    """,
    """
    CREATE FUNCTION log_update() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO updates VALUES (
            NEW.id,
            NEW.turn,
            NEW.turn <> OLD.turn,
            (OLD.id, OLD.tenant_id, OLD.written_by, OLD.changed, OLD.revision)
                IS DISTINCT FROM (NEW.id, NEW.tenant_id, NEW.written_by, NEW.changed, NEW.revision),
            ARRAY[version_of(OLD.email), version_of(OLD.note), version_of(OLD.age)],
            ARRAY[version_of(NEW.email), version_of(NEW.note), version_of(NEW.age)],
            ARRAY[NEW.email IS DISTINCT FROM OLD.email, NEW.note IS DISTINCT FROM OLD.note,
                  NEW.age IS DISTINCT FROM OLD.age]
        );
        RETURN NULL;
    END $$
    """,
    "CREATE TRIGGER log_update AFTER UPDATE ON patients FOR EACH ROW EXECUTE FUNCTION log_update()",
    # The application's commits take a while, as on a busy server: its rows stay locked, and answers can get lost.
    """
    CREATE FUNCTION commit_slowly() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_sleep(0.06);
        RETURN NULL;
    END $$
    """,
    """
    CREATE CONSTRAINT TRIGGER commit_slowly AFTER UPDATE ON patients DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.turn <> OLD.turn) EXECUTE FUNCTION commit_slowly()
    """,
)

_BY_COLUMN: Final = """
    SELECT id, turn, place, was, became FROM updates,
        unnest(before, after, rewritten) WITH ORDINALITY AS each(was, became, anew, place)
    WHERE anew AND NOT by_application
"""


def log_updates(engine: Engine) -> None:
    with engine.begin() as connection:
        for statement in _LOG:
            connection.execute(text(statement))


@dataclass(frozen=True)
class Log:
    """What the log says of a whole run.

    Attributes:
        writes: UPDATEs of rows by the application.
        moves: UPDATEs of rows by the job.
        twice: Values that the job wrote twice with one version, with no write by the application in between.
        not_forward: Values that the job wrote although they were sealed with that version or a later one.
        idle: UPDATEs by the job that changed no value.
        beside: UPDATEs by the job that changed another column.
    """

    writes: int
    moves: int
    twice: list[Any]
    not_forward: list[Any]
    idle: int
    beside: int


def read_log(engine: Engine) -> Log:
    twice = f"SELECT id, turn, place, became, count(*) FROM ({_BY_COLUMN}) GROUP BY 1, 2, 3, 4 HAVING count(*) > 1"
    not_forward = f"SELECT * FROM ({_BY_COLUMN}) WHERE (became > was) IS NOT TRUE"
    counts = """
        SELECT count(*) FILTER (WHERE by_application), count(*) FILTER (WHERE NOT by_application),
            count(*) FILTER (WHERE NOT by_application AND NOT true = ANY (rewritten)),
            count(*) FILTER (WHERE NOT by_application AND plain_changed)
        FROM updates
    """
    with engine.connect() as connection:
        writes, moves, idle, beside = connection.execute(text(counts)).one()
        found = [list(connection.execute(text(query)).all()) for query in (twice, not_forward)]
    return Log(writes, moves, *found, idle, beside)
