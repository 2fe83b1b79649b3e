"""An application beside the command: models, and rows that it has written before a command looks at them."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import Engine, LargeBinary, bindparam, column, create_engine, select, table, text, update
from sqlalchemy.orm import Session
from tests.support.command import pii_vault_process
from tests.support.operator import Operator

from pii_vault.config import load

APPLICATION = """
from sqlalchemy import MetaData, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pii_vault import BlindIndex, EncryptedString, LastChars


class Old(DeclarativeBase):
    pass


class OldPatient(Old):
    __tablename__ = "patients"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    email: Mapped[str | None] = mapped_column(EncryptedString())
    phone: Mapped[str | None] = mapped_column(EncryptedString(context="patient-phone"))


class Base(DeclarativeBase):
    pass


class Patient(Base):
    __tablename__ = "patients"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    email: Mapped[str | None] = mapped_column(EncryptedString(index=BlindIndex(normalise=("casefold",))))
    phone: Mapped[str | None] = mapped_column(
        EncryptedString(context="patient-phone", index=True, tokens={"last4": LastChars(4)})
    )


class Changed(DeclarativeBase):
    pass


class ChangedPatient(Changed):
    __tablename__ = "patients"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str | None] = mapped_column(EncryptedString(index=BlindIndex(bits=12)))
    phone: Mapped[str | None] = mapped_column(
        EncryptedString(context="patient-phone", index=True, tokens={"last4": LastChars(4)})
    )


class Half(DeclarativeBase):
    pass


class HalfPatient(Half):
    __tablename__ = "patients"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str | None] = mapped_column(EncryptedString(index=BlindIndex(normalise=("casefold",))))
"""

ROWS = 20


@dataclass
class Application:
    """The application beside the command: its models and its rows."""

    ops: Operator
    models: ModuleType
    engine: Engine

    @property
    def kms_key(self) -> str:
        """The ARN of the KMS key of `acme`."""
        arn: str = self.ops.json("tenant show", "acme")["kms_key_arn"]
        return arn

    @property
    def metadata(self) -> list[str]:
        return self.named("Base")

    def named(self, base: str) -> list[str]:
        """The option that names a declarative base of the module."""
        return ["--metadata", f"{self.models.__name__}:{base}"]

    def write(self, tenant: str, count: int = ROWS, *, model: str = "OldPatient") -> None:
        """Add rows as a process does that knows nothing of an index."""
        rows = [{"email": f"p{n}@{tenant}.example", "phone": f"555-{1000 + n}"} for n in range(count)]
        for row in rows[:ROWS]:
            for value in row.values():
                self.ops.secrets.add(value)
        with self._session(tenant) as session:
            session.add_all(getattr(self.models, model)(tenant_id=tenant, **row) for row in rows)

    def found(self, number: int, tenant: str = "acme") -> int:
        """Say how many rows of a tenant are found by an address."""
        patient = self.models.Patient
        with self._session(tenant) as session:
            return len(session.scalars(select(patient.id).where(patient.email == f"P{number}@{tenant}.EXAMPLE")).all())

    def compares(self) -> None:
        patient = self.models.Patient
        with self._session("acme") as session:
            session.execute(select(patient.email.blind_index).group_by(patient.email.blind_index)).all()

    def break_row(self, key: int) -> None:
        """Change the last byte of a row's address."""
        people = table("patients", column("id"), column("email", LargeBinary))
        with self.engine.begin() as connection:
            sealed = bytes(connection.scalar(select(people.c.email).where(people.c.id == key)))
            broken = sealed[:-1] + bytes((sealed[-1] ^ 1,))
            connection.execute(update(people).where(people.c.id == key).values(email=bindparam("new", broken)))

    def tokens(self) -> int:
        """Say how many addresses have a token."""
        with self.engine.connect() as connection:
            stored = connection.scalars(select(column("email", LargeBinary)).select_from(table("patients")))
            return sum(bytes(each)[9] > 0 for each in stored)

    @contextmanager
    def _session(self, tenant: str) -> Iterator[Session]:
        """A session in a tenant's scope, of a vault of its own: another process than the command."""
        vault, engine = load(ttl=0).make_vault(), create_engine(self.engine.url)
        vault.attach(engine)
        try:
            with vault.tenant(tenant), Session(engine) as session, session.begin():
                yield session
        finally:
            engine.dispose()
            vault.close()


def application_of(ops: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Application]:
    name = f"application_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(APPLICATION, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for variable, value in ops.settings.items():
        monkeypatch.setenv(variable, value)
    models = __import__(name)
    engine = create_engine(ops.settings["PII_VAULT_DATABASE_URL"])
    models.Old.metadata.create_all(engine)
    ops.run("tenant", "add", "acme", *ops.kms.new_key())
    made = Application(ops, models, engine)
    made.write("acme")
    yield made
    engine.dispose()
    del sys.modules[name]


def stopped_at_row(app: Application, key: int, *arguments: str, patient: bool = False) -> str:
    """Hold a row, press Ctrl-C as soon as a command waits for it, and return what the command says.

    It wants to finish what it has begun. A patient person lets the row go then, others press Ctrl-C again.
    """
    waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = :name")
    with app.engine.connect() as connection, app.engine.connect() as other:
        connection.execute(text("SELECT 1 FROM patients WHERE id = :key FOR UPDATE"), {"key": key})
        looking = other.execution_options(isolation_level="AUTOCOMMIT")
        process = pii_vault_process(*arguments, **app.ops.settings)
        wait_until(lambda: looking.scalar(waiting, {"name": app.engine.url.database}) or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert process.stderr.readline().startswith("pii-vault: the rows that are being written are finished;")
        if patient:
            connection.rollback()
        else:
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        connection.rollback()
    app.ops.outputs += [out, err]
    assert (process.returncode, out) == (130, "")
    return err


def wait_until(reached: Callable[[], Any]) -> None:
    limit = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < limit
        time.sleep(0.02)
