"""A key store whose replica is asked and lags: the error says so, and that a retry helps; it is no alarm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import String, create_engine, make_url, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.pool import NullPool
from tests.support.clocks import Clocks
from tests.support.postgres import EmbeddedPostgres

from pii_vault import EncryptedString, LocalKms, Vault
from pii_vault.errors import KeyNotFoundError, KeyStoreBehindError
from pii_vault.keyring.terms import UNKNOWN_SECONDS

TTL = 300.0


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    body: Mapped[str] = mapped_column(EncryptedString())


class Pair:
    """A primary and a standby that follows it, with one key store, and two vaults on it."""

    def __init__(self, primary: EmbeddedPostgres, standby: EmbeddedPostgres, name: str, folder: Path) -> None:
        self.primary, self.standby, self.name, self.clocks = primary, standby, name, Clocks()
        self.asked = primary
        self.kms = LocalKms(folder / "kms.json")
        self.engine = create_engine(f"sqlite:///{folder / 'application.sqlite3'}")
        Base.metadata.create_all(self.engine)
        self.writer = Vault(primary.url(name), kms=self.kms, clock=self.clocks.as_clock)
        self.writer.create_all()
        self.writer.add_tenant("acme", key=self.kms.create_key())
        self.catch_up()
        # As behind a load balancer: each new connection may end at the other server.
        balanced = create_engine("postgresql+psycopg://", creator=self._connect, poolclass=NullPool)
        self.reader = Vault(balanced, kms=self.kms, ttl=TTL, clock=self.clocks.as_clock)

    def _connect(self) -> psycopg.Connection[Any]:
        url = make_url(self.asked.url(self.name)).set(drivername="postgresql").render_as_string(hide_password=False)
        return psycopg.connect(url)

    def catch_up(self) -> None:
        """Wait until the standby knows all that the primary does."""
        self.standby.catch_up(self.primary)

    def write(self, vault: Vault, body: str) -> None:
        with vault.tenant("acme"), self._sessions(vault).begin() as session:
            session.add(Note(tenant_id="acme", body=body))

    def read(self, vault: Vault) -> list[str]:
        with vault.tenant("acme"), self._sessions(vault)() as session:
            return list(session.scalars(select(Note.body).order_by(Note.id)))

    def _sessions(self, vault: Vault) -> sessionmaker[Session]:
        engine = create_engine(self.engine.url, poolclass=NullPool)
        vault.attach(engine, tenant_column="tenant_id")
        return sessionmaker(engine)


@pytest.fixture
def pair(servers: tuple[EmbeddedPostgres, EmbeddedPostgres], tmp_path: Path) -> Iterator[Pair]:
    primary, standby = servers
    made = Pair(primary, standby, primary.create_database(), tmp_path)
    yield made
    standby.pause_replay(False)
    for vault in (made.writer, made.reader):
        vault.close()
    made.engine.dispose()
    primary.drop_database(made.name)


def test_a_value_of_a_version_that_the_replica_does_not_know_yet_is_read_when_it_does(pair: Pair) -> None:
    pair.write(pair.writer, "version 1")
    pair.asked = pair.standby
    assert pair.read(pair.reader) == ["version 1"]
    pair.standby.pause_replay()
    assert pair.writer.rotate("acme").version == 2
    pair.write(pair.writer, "version 2")
    for _ in range(3):
        with pytest.raises(
            KeyStoreBehindError, match=r"data key version 2 of tenant 'acme' is not known to.*replica"
        ) as caught:
            pair.read(pair.reader)
        assert caught.value.retryable
    pair.standby.pause_replay(False)
    pair.catch_up()
    pair.clocks.pass_(UNKNOWN_SECONDS)
    assert pair.read(pair.reader) == ["version 1", "version 2"]


def test_keys_that_are_older_than_those_seen_before_are_no_alarm_on_a_replica_and_seal_nothing(pair: Pair) -> None:
    pair.standby.pause_replay()
    assert pair.writer.rotate("acme").version == 2
    pair.write(pair.reader, "version 2")
    pair.asked = pair.standby
    pair.clocks.pass_(TTL)
    with pytest.raises(KeyStoreBehindError, match="try again when it has caught up"):
        pair.write(pair.reader, "never")
    pair.asked = pair.primary
    assert pair.read(pair.reader) == ["version 2"]
    pair.asked = pair.standby
    pair.standby.pause_replay(False)
    pair.catch_up()
    pair.clocks.pass_(TTL)
    assert pair.read(pair.reader) == ["version 2"]


def test_on_the_primary_a_version_that_is_not_there_is_not_there(pair: Pair) -> None:
    pair.write(pair.writer, "version 1")
    forged = create_engine(pair.engine.url, poolclass=NullPool)
    with forged.begin() as connection:
        sealed = connection.scalar(text("SELECT body FROM notes"))
        assert isinstance(sealed, bytes)
        connection.execute(text("UPDATE notes SET body = :b"), {"b": sealed[:5] + b"\x00\x09" + sealed[7:]})
    with pytest.raises(KeyNotFoundError, match="holds no data key version 9"):
        pair.read(pair.reader)
    pair.asked = pair.standby
    pair.clocks.pass_(TTL)
    with pytest.raises(KeyStoreBehindError):
        pair.read(pair.reader)
