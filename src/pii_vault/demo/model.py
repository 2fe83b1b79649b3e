"""The demo's model: ordinary declarative SQLAlchemy, with three encrypted columns, one of them searched."""

from __future__ import annotations

from datetime import date

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from ..blind_index import BlindIndex
from ..orm.types import EncryptedDate, EncryptedString


class Base(DeclarativeBase):
    """The demo's tables."""


class Patient(Base):
    """A person whose data belongs to a tenant."""

    __tablename__ = "patients"

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    name: Mapped[str] = mapped_column(EncryptedString(index=BlindIndex(normalise=("casefold",))))
    email: Mapped[str] = mapped_column(EncryptedString())
    born: Mapped[date] = mapped_column(EncryptedDate())
