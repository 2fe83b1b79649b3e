"""The generated columns that hold tokens on MariaDB."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Engine, Index, inspect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pii_vault import BlindIndex, EncryptedString, LastChars

LAST4 = BlindIndex(part=LastChars(4), create=False)


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    phone: Mapped[str | None] = mapped_column(EncryptedString(tokens={"home_last4": LAST4}))
    phone_home: Mapped[str | None] = mapped_column(
        EncryptedString(index=BlindIndex(create=False), tokens={"last4": LAST4})
    )


Index("ix_one", Customer.phone.token("home_last4"))  # type: ignore[attr-defined]
Index("ix_two", Customer.phone_home.token("last4"))  # type: ignore[attr-defined]


def test_two_names_that_run_together_are_two_columns(mariadb_url: str, make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(mariadb_url)
    Base.metadata.create_all(engine)
    generated = {
        each["name"]: each["computed"]["sqltext"]
        for each in inspect(engine).get_columns("customers")
        if "computed" in each
    }
    assert generated == {
        "pii_vault_phone_0": "(substr(`phone`,11,16))",
        "pii_vault_phone_home_1": "(substr(`phone_home`,27,16))",
    }
