"""One application's models twice: with encrypted columns, and as the plaintext twin that says what is right."""

from __future__ import annotations

import datetime as dt
from types import SimpleNamespace
from typing import Any

from sqlalchemy import JSON, Date, ForeignKey, Integer, Row, String, Text, UniqueConstraint, inspect
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.orm.state import InstanceState

from pii_vault import EncryptedArray, EncryptedDate, EncryptedInteger, EncryptedJSON, EncryptedString


def DOCUMENT() -> Any:
    return JSON().with_variant(JSONB(), "postgresql")


PLAIN = {EncryptedString: Text, EncryptedInteger: Integer, EncryptedDate: Date, EncryptedJSON: DOCUMENT}


def define(*, sealed: bool) -> SimpleNamespace:
    """Define the classes, with encrypted columns or without; the twins' tables have the prefix ``plain_``."""
    prefix = "" if sealed else "plain_"

    def kind(encrypted: Any) -> Any:
        return encrypted() if sealed else PLAIN[encrypted]()

    class Base(DeclarativeBase):
        type_annotation_map = {str: String(100)}  # MariaDB wants to know

    class Team(Base):
        __tablename__ = f"{prefix}teams"
        id: Mapped[int] = mapped_column(primary_key=True)
        tenant_id: Mapped[str]
        name: Mapped[str]
        motto: Mapped[str | None] = mapped_column(kind(EncryptedString))
        users: Mapped[list[Any]] = relationship("User", back_populates="team", order_by="User.id")

    class User(Base):
        __tablename__ = f"{prefix}users"
        __table_args__ = (UniqueConstraint("tenant_id", "name"),)
        id: Mapped[int] = mapped_column(primary_key=True)
        tenant_id: Mapped[str]
        name: Mapped[str]
        team_id: Mapped[int | None] = mapped_column(ForeignKey(Team.id))
        boss_id: Mapped[int | None] = mapped_column(ForeignKey(f"{prefix}users.id"))
        email: Mapped[str] = mapped_column(kind(EncryptedString))
        phone: Mapped[str | None] = mapped_column(kind(EncryptedString))
        age: Mapped[int | None] = mapped_column(kind(EncryptedInteger))
        born: Mapped[dt.date | None] = mapped_column(kind(EncryptedDate))
        prefs: Mapped[dict[str, Any] | None] = mapped_column(kind(EncryptedJSON))
        tags: Mapped[list[str] | None] = mapped_column(EncryptedArray(EncryptedString()) if sealed else DOCUMENT())
        team: Mapped[Team | None] = relationship(back_populates="users")
        boss: Mapped[Any] = relationship("User", remote_side="User.id")
        addresses: Mapped[list[Any]] = relationship("Address", back_populates="user", order_by="Address.id")

    class Address(Base):
        __tablename__ = f"{prefix}addresses"
        id: Mapped[int] = mapped_column(primary_key=True)
        tenant_id: Mapped[str]
        user_id: Mapped[int] = mapped_column(ForeignKey(User.id))
        zip: Mapped[str]
        city: Mapped[str] = mapped_column(kind(EncryptedString))
        user: Mapped[User] = relationship(back_populates="addresses")

    Base.registry.configure()
    return SimpleNamespace(metadata=Base.metadata, Base=Base, Team=Team, User=User, Address=Address, prefix=prefix)


SEALED = define(sealed=True)
TWIN = define(sealed=False)


def some_rows(models: SimpleNamespace) -> list[Any]:
    """Return objects of the tenant acme, the same for both kinds of models."""
    return [
        models.Team(id=1, tenant_id="acme", name="red", motto="festina lente"),
        models.Team(id=2, tenant_id="acme", name="blue", motto=None),
        models.User(
            id=1,
            tenant_id="acme",
            name="ada",
            team_id=1,
            email="ada@example.com",
            phone="+44 1",
            age=36,
            born=dt.date(1815, 12, 10),
            prefs={"theme": "dark"},
            tags=["maths", "poetry"],
        ),
        models.User(
            id=2, tenant_id="acme", name="bob", team_id=1, boss_id=1, email="bob@example.com", phone=None, age=36
        ),
        models.User(id=3, tenant_id="acme", name="eve", team_id=2, boss_id=1, email="eve@example.com", phone=""),
        models.User(id=4, tenant_id="acme", name="kim", team_id=None, boss_id=2, email="ada@example.com", age=-1),
        models.Address(id=1, tenant_id="acme", user_id=1, zip="1000", city="London"),
        models.Address(id=2, tenant_id="acme", user_id=1, zip="2000", city="Bath"),
        models.Address(id=3, tenant_id="acme", user_id=3, zip="1000", city="London"),
    ]


def facts(value: Any) -> Any:
    """Turn what a statement returned into something that the sealed models and the twin have in common."""
    if isinstance(value, list):
        return [facts(each) for each in value]
    if isinstance(value, tuple):
        return tuple(facts(each) for each in value)
    state = inspect(value, raiseerr=False)
    if isinstance(state, InstanceState):
        loaded = {attribute.key: getattr(value, attribute.key) for attribute in state.mapper.column_attrs}
        return (type(value).__name__, tuple(sorted(loaded.items())))
    return tuple(facts(each) for each in value) if isinstance(value, Row) else value
