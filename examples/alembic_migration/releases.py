"""The four releases of the application, as their models: from plaintext columns to sealed ones.

A real application has one of them at a time, in its repository. Here they stand side by side to be compared.
"""

from __future__ import annotations

from sqlalchemy import MetaData, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pii_vault import EncryptedString, EncryptedText


class Plain:
    """Release 1 knows no encryption."""

    class Base(DeclarativeBase):
        metadata = MetaData()

    class Customer(Base):
        __tablename__ = "customers"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        tenant_id: Mapped[str] = mapped_column(String(30))
        email: Mapped[str | None] = mapped_column(String(100), index=True)

    class Note(Base):
        __tablename__ = "notes"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        tenant_id: Mapped[str] = mapped_column(String(30))
        body: Mapped[str | None] = mapped_column(Text)


class Both:
    """Release 2 writes both columns and reads the plaintext. `adopting` is all that it says."""

    class Base(DeclarativeBase):
        metadata = MetaData()

    class Customer(Base):
        __tablename__ = "customers"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        tenant_id: Mapped[str] = mapped_column(String(30))
        email: Mapped[str | None] = mapped_column(String(100), index=True)
        email_sealed: Mapped[str | None] = mapped_column(EncryptedString(index=True).adopting("email"), deferred=True)

    class Note(Base):
        __tablename__ = "notes"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        tenant_id: Mapped[str] = mapped_column(String(30))
        body: Mapped[str | None] = mapped_column(Text)
        body_sealed: Mapped[str | None] = mapped_column(EncryptedText().adopting("body"), deferred=True)


class Sealed:
    """Release 3 writes both columns and reads the sealed one: the attributes have changed places."""

    class Base(DeclarativeBase):
        metadata = MetaData()

    class Customer(Base):
        __tablename__ = "customers"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        tenant_id: Mapped[str] = mapped_column(String(30))
        email: Mapped[str | None] = mapped_column("email_sealed", EncryptedString(index=True).adopting("email"))
        email_plain: Mapped[str | None] = mapped_column("email", String(100), index=True, deferred=True)

    class Note(Base):
        __tablename__ = "notes"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        tenant_id: Mapped[str] = mapped_column(String(30))
        body: Mapped[str | None] = mapped_column("body_sealed", EncryptedText().adopting("body"))
        body_plain: Mapped[str | None] = mapped_column("body", Text, deferred=True)


class Final:
    """Release 4 knows the sealed columns only. The contexts are those that the values were sealed for."""

    class Base(DeclarativeBase):
        metadata = MetaData()

    class Customer(Base):
        __tablename__ = "customers"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        tenant_id: Mapped[str] = mapped_column(String(30))
        email: Mapped[str | None] = mapped_column(
            "email_sealed", EncryptedString(index=True, context="customers.email")
        )

    class Note(Base):
        __tablename__ = "notes"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        tenant_id: Mapped[str] = mapped_column(String(30))
        body: Mapped[str | None] = mapped_column("body_sealed", EncryptedText(context="notes.body"))
