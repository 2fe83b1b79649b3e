"""Where the demo plays: a database and two KMS keys, found or made, and cleared away afterwards."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError

from ..errors import ConfigurationError, KeyStoreError
from ..keystore.engine import open_engine
from ..kms import KmsLifecycle

TENANTS: Final = ("acme", "globex")


PROPAGATION: Final = 60.0


class KeyOwner(Protocol):
    """What a customer does with a key of its own, in its own KMS."""

    def disable_key(self, arn: str) -> None:
        """Make it unusable."""

    def enable_key(self, arn: str) -> None:
        """Make it usable again."""


@dataclass(frozen=True)
class Database:
    """An empty database.

    Attributes:
        engine: On it.
        name: What it is, in words.
        stored_bytes: Returns everything that it holds, as it is stored.
    """

    engine: Engine
    name: str
    stored_bytes: Callable[[], bytes]

    @contextmanager
    def past_triggers(self, table: str) -> Iterator[Connection]:
        """Give a transaction in which a table can be changed against its triggers, as its owner can."""
        with self.engine.begin() as connection:
            if self.engine.dialect.name == "sqlite":
                query = text("SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = :table")
                for name in connection.scalars(query, {"table": table}).all():
                    connection.exec_driver_sql(f'DROP TRIGGER "{name}"')
            else:
                connection.exec_driver_sql(f'ALTER TABLE "{table}" DISABLE TRIGGER USER')
            yield connection


@dataclass(frozen=True)
class Keys:
    """The customers' KMS keys, and the platform's.

    Attributes:
        kms: Where they are.
        name: What it is, in words.
        owner: Disables and enables them.
        arns: The key of each of `TENANTS`.
        platform: The platform's own key.
        propagation: Seconds that the KMS may need until every one of its machines knows of a disabled key.
    """

    kms: KmsLifecycle
    name: str
    owner: KeyOwner
    arns: Sequence[str]
    platform: str
    propagation: float = 0.0


@dataclass(frozen=True)
class Stage:
    """A database and the keys."""

    database: Database
    keys: Keys


@contextmanager
def stage(database_url: str | None, kms: str, endpoint_url: str | None, keys: Sequence[str]) -> Iterator[Stage]:
    """Set the stage, and clear it when the block ends, however it ends."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="pii-vault-demo-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        chosen = stack.enter_context(_keys(folder, kms, endpoint_url, keys))
        yield Stage(stack.enter_context(_database(folder, database_url)), chosen)


@contextmanager
def _database(folder: Path, database_url: str | None) -> Iterator[Database]:
    if database_url is None:
        engine = create_engine(f"sqlite:///{folder / 'demo.sqlite3'}")
        try:
            yield Database(engine, "a SQLite file", lambda: _content(folder))
        finally:
            engine.dispose()
        return
    schema = f"pii_vault_demo_{secrets.token_hex(4)}"
    engine = _engine_in(schema, database_url)
    _execute(engine, f'CREATE SCHEMA "{schema}"')
    try:
        yield Database(engine, "PostgreSQL", lambda: _dump(engine, schema))
    finally:
        _execute(engine, f'DROP SCHEMA "{schema}" CASCADE')
        engine.dispose()


def _content(folder: Path) -> bytes:
    """Return the database file, and its journal if there is one."""
    return b"".join(path.read_bytes() for path in sorted(folder.glob("demo.sqlite3*")))


def _engine_in(schema: str, database_url: str) -> Engine:
    """Make an engine whose connections see this one schema: key store and application, and nobody else's tables."""
    try:
        is_postgresql = make_url(database_url).get_backend_name() == "postgresql"
    except ArgumentError:
        is_postgresql = False
    if not is_postgresql:
        raise ConfigurationError(
            "the demo's --database-url is for PostgreSQL", hint="leave it out to run on a SQLite file of its own"
        )
    engine = open_engine(database_url)

    @event.listens_for(engine, "connect", insert=True)
    def set_search_path(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(f'SET search_path TO "{schema}"')
        cursor.close()
        connection.commit()

    return engine


def _execute(engine: Engine, statement: str) -> None:
    failure = None
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql(statement)
    except DBAPIError as error:
        failure = type(error.orig).__name__
    if failure is not None:
        # The driver's own text names host and user.
        raise KeyStoreError(
            f"the database failed with {failure}", hint="check its URL, and that this user may create a schema"
        )


def _dump(engine: Engine, schema: str) -> bytes:
    """Return every row of every table: texts as they are, and bytes decoded from PostgreSQL's hex."""
    found = []
    with engine.connect() as connection:
        names = connection.scalars(
            text("SELECT tablename FROM pg_tables WHERE schemaname = :schema"), {"schema": schema}
        )
        for name in names.all():
            for row in connection.execute(text(f'SELECT * FROM "{schema}"."{name}"')):  # noqa: S608 - our own tables
                found += [bytes(cell) if isinstance(cell, bytes | memoryview) else str(cell).encode() for cell in row]
    return b"\0".join(found)


@contextmanager
def _keys(folder: Path, kms: str, endpoint_url: str | None, keys: Sequence[str]) -> Iterator[Keys]:
    if kms == "aws":
        with _aws_keys(endpoint_url, keys) as found:
            yield found
        return
    if kms != "local":
        raise ConfigurationError(f"the demo's KMS is local or aws, not {kms!r}")
    if endpoint_url or keys:
        raise ConfigurationError("--endpoint-url and --key are for --kms aws")
    from ..kms.local import LocalKms

    local = LocalKms(folder / "kms.json")
    yield Keys(local, "LocalKms", local, [local.create_key() for _ in TENANTS], local.platform_key())


@contextmanager
def _aws_keys(endpoint_url: str | None, keys: Sequence[str]) -> Iterator[Keys]:
    from ..kms.aws import AwsKms
    from ..kms.aws_admin import AwsKeyOwner

    owner = AwsKeyOwner(endpoint_url=endpoint_url)
    kms = AwsKms(endpoint_url=endpoint_url)
    name = f"AWS KMS at {endpoint_url}" if endpoint_url else "AWS KMS"
    if keys:
        if len(keys) != len(TENANTS) + 1 or len(set(keys)) != len(keys):
            raise ConfigurationError(
                "give three different keys: two customers', then the platform's", hint="--key ARN --key ARN --key ARN"
            )
        yield Keys(kms, name, owner, keys[:-1], keys[-1], PROPAGATION)
        return
    if endpoint_url is None:
        # A key in AWS costs money until it is deleted, and that takes a week.
        raise ConfigurationError(
            "the demo makes no keys in AWS", hint="give three of your own: --key ARN --key ARN --key ARN"
        )
    made: list[str] = []
    try:
        for _ in (*TENANTS, "platform"):
            made.append(owner.create_key())
        yield Keys(kms, name, owner, made[:-1], made[-1], PROPAGATION)
    finally:
        for arn in made:
            owner.schedule_key_deletion(arn)
