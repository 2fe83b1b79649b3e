"""A report on a year of an ordinary tenant: what docs/ shows, and what browsers are given to show."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import LargeBinary, String, column, create_engine, insert, table
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tests.support.strict_kms import StrictKms

from pii_vault import EncryptedDate, EncryptedString, Vault
from pii_vault.report.facts import Report

OPS = "ops@provider.example"


class Base(DeclarativeBase):
    """The application's models."""


class Patient(Base):
    __tablename__ = "patients"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    email: Mapped[str | None] = mapped_column(EncryptedString(index=True))
    phone: Mapped[str | None] = mapped_column(EncryptedString())
    born: Mapped[Any] = mapped_column(EncryptedDate(), nullable=True)


class Year:
    """A tenant's year: a vault on a clock that is set, a KMS over HTTP, an application that writes."""

    def __init__(self, folder: Path, kms: StrictKms, tenant: str) -> None:
        self.tenant = tenant
        self.now = datetime(2026, 1, 12, 9, 30, tzinfo=UTC)
        self.kms = kms
        self.engine = create_engine(f"sqlite:///{folder / 'year.sqlite3'}")
        self.vault = Vault(
            self.engine, kms=kms.provider(), platform_key=kms.platform_key(), actor=OPS, now=lambda: self.now
        )
        self.vault.create_all()
        Base.metadata.create_all(self.engine)
        self.key = kms.customer_key()
        kms.allow(self.key.arn, str(self.key.role_arn), actions=["kms:ListKeyRotations"], describe=False)
        self.vault.add_tenant(
            tenant, key=self.key.arn, role_arn=self.key.role_arn, external_id=self.key.external_id, rotation_days=120
        )
        self.vault.set_terms(tenant, ttl=300, grace=60)
        self.vault.attach(self.engine, tenant_column="tenant_id")

    def on(self, month: int, day: int) -> None:
        """Let it be another day."""
        self.now = self.now.replace(month=month, day=day)

    def write(self, count: int) -> None:
        """Add patients; every fifth has no phone."""
        rows = [{"email": f"p{n}@acme.example", "phone": None if n % 5 == 0 else f"555-{n:04}"} for n in range(count)]
        with self.vault.tenant(self.tenant), Session(self.engine) as session, session.begin():
            session.add_all(Patient(tenant_id=self.tenant, **row) for row in rows)

    def write_raw(self, email: bytes) -> None:
        """Write an address past the vault."""
        patients = table("patients", column("tenant_id", String), column("email", LargeBinary))
        raw = create_engine(self.engine.url)
        with raw.begin() as connection:
            connection.execute(insert(patients).values(tenant_id=self.tenant, email=email))
        raw.dispose()

    def report(self, **options: Any) -> Report:
        """Make the report."""
        options = {"processes": 8, "tenant_column": "tenant_id"} | options
        return self.vault.report(self.tenant, metadata=Base.metadata, engine=self.engine, **options)


@contextmanager
def year_of(folder: Path, tenant: str = "acme-clinics") -> Iterator[Year]:
    """Give a block a tenant's year: three data keys, a re-wrap, nothing wrong."""
    with StrictKms() as kms:
        year = Year(folder, kms, tenant)
        year.write(160)
        year.on(5, 12)
        year.vault.rotate(tenant)
        year.write(240)
        year.on(6, 3)
        kms.rotate(year.key.arn)
        year.vault.rewrap(tenant, reason="newer key material")
        year.on(9, 9)
        year.vault.rotate(tenant)
        year.write(90)
        year.on(11, 27)
        try:
            yield year
        finally:
            year.vault.close()
            year.engine.dispose()


def go_wrong(year: Year) -> None:
    """Let a key be compromised, and somebody write past the vault."""
    year.vault.compromise(year.tenant, 1, reason="laptop lost")
    for number in range(3):
        year.write_raw(f"never-sealed-{number}@acme.example".encode())
