"""What a type checker says of a model with encrypted columns: checked by mypy and pyright, never run."""

from datetime import date, datetime
from decimal import Decimal
from typing import Any, assert_type
from uuid import UUID

from sqlalchemy import Column, Integer, MetaData, Table, create_engine, select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from pii_vault import (
    AwsKms,
    EncryptedArray,
    EncryptedDate,
    EncryptedDateTime,
    EncryptedJSON,
    EncryptedNumeric,
    EncryptedString,
    EncryptedUUID,
    LastChars,
    Vault,
)
from pii_vault.lifecycle.rotation import Rotation


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    email: Mapped[str] = mapped_column(EncryptedString())
    born: Mapped[date | None] = mapped_column(EncryptedDate())
    seen: Mapped[datetime] = mapped_column(EncryptedDateTime(timezone=True))
    balance: Mapped[Decimal] = mapped_column(EncryptedNumeric())
    device: Mapped[UUID] = mapped_column(EncryptedUUID(context="customers.device"))
    tags: Mapped[list[str]] = mapped_column(EncryptedArray(EncryptedString()))
    profile: Mapped[dict[str, Any]] = mapped_column(EncryptedJSON())


notes = Table("notes", MetaData(), Column("id", Integer, primary_key=True), Column("text", EncryptedString()))

assert_type(notes.c["text"], Column[Any])


def use(vault: Vault) -> None:
    engine = create_engine("postgresql+psycopg://localhost/app")
    sessions = sessionmaker(engine)
    vault.attach(engine, sessions, tenant_column="tenant_id")
    with vault.tenant("acme") as scope, Session(engine) as session:
        assert_type(scope.tenant, str)
        customer = session.scalars(select(Customer)).one()
        assert_type(customer.email, str)
        assert_type(customer.born, date | None)
        assert_type(customer.tags, list[str])
        row = session.execute(select(Customer.balance, Customer.device)).one()
        assert_type(row.tuple(), tuple[Decimal, UUID])
    assert_type(vault.rotate("acme"), Rotation)
    assert_type(vault.tenants(), list[str])


async def use_async() -> None:
    vault = Vault("postgresql+psycopg://localhost/app", kms=AwsKms())
    engine = create_async_engine("postgresql+asyncpg://localhost/app")
    sessions = async_sessionmaker(engine)
    vault.attach(engine, sessions, tenant_column="tenant_id")
    async with vault.tenant("acme"), sessions() as session:
        customer = (await session.scalars(select(Customer))).one()
        assert_type(customer.email, str)


class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    ssn: Mapped[str] = mapped_column(EncryptedString(index=True, tokens={"last4": LastChars(4)}))


def search(session: Session) -> None:
    session.scalars(select(Person).where(Person.ssn == "078-05-1120")).all()
    session.scalars(select(Person).where(Person.ssn.token("last4") == "1120")).all()
    session.execute(select(Person.ssn.blind_index)).all()
