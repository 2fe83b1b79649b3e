"""An application whose rows several workers move: models with all kinds of keys, and what a worker is given.

A worker is a process of its own, which imports this and opens its own vault.
"""

from __future__ import annotations

import os
import signal
import uuid
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, LargeBinary, MetaData, String, column, create_engine, event, select, table
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pii_vault import EncryptedInteger, EncryptedString, LocalKms, Vault
from pii_vault.reencryption.crews import Part, PartDone

COUNTS = {"people": 300, "parcels": 60, "words": 60, "tickets": 60}


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    email: Mapped[str | None] = mapped_column(EncryptedString())
    age: Mapped[int | None] = mapped_column(EncryptedInteger())


class Parcel(Base):
    __tablename__ = "parcels"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    address: Mapped[str] = mapped_column(EncryptedString())


class Word(Base):
    __tablename__ = "words"
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    meaning: Mapped[str] = mapped_column(EncryptedString())


class Ticket(Base):
    __tablename__ = "tickets"
    shop: Mapped[str] = mapped_column(String(20), primary_key=True)
    number: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    holder: Mapped[str] = mapped_column(EncryptedString())


SEALED = {
    "people": ("id", "email", "age"),
    "parcels": ("id", "address"),
    "words": ("id", "meaning"),
    "tickets": ("number", "holder"),
}
"""Of each table a column that tells rows apart, and the sealed ones."""


def rows(tenant: str, counts: dict[str, int] = COUNTS) -> list[Any]:
    """Return rows of a tenant, with an empty key and keys in two cases among them."""
    words = ["", "ä", "Z", "z", *(f"{'wW'[n % 2]}ord {n}" for n in range(counts["words"]))]
    return [
        *(Person(email=f"{tenant}-{n}@example.com", age=None if n % 5 == 0 else n) for n in range(counts["people"])),
        *(Parcel(id=uuid.uuid4(), address=f"{tenant} street {n}") for n in range(counts["parcels"])),
        *(Word(id=f"{word}"[:40], meaning=f"{tenant} means {n}") for n, word in enumerate(words[: counts["words"]])),
        *(
            Ticket(shop=f"s{n % 4}", number=uuid.uuid4(), holder=f"{tenant} holds {n}")
            for n in range(counts["tickets"])
        ),
    ]


def stored(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    """Return the bytes that stand in the tables."""
    found = {}
    with engine.connect() as connection:
        for name, (key, *sealed) in SEALED.items():
            columns = [column(key), *(column(each, LargeBinary) for each in sealed)]
            read = connection.execute(select(*columns).select_from(table(name)).order_by(column(key)))
            found[name] = [tuple(each) for each in read]
    return found


def versions(engine: Engine) -> dict[int, int]:
    """Say how many values each data-key version has sealed."""
    every = [
        int.from_bytes(value[5:7], "big")
        for read in stored(engine).values()
        for row in read
        for value in row[1:]
        if value is not None
    ]
    return {each: every.count(each) for each in set(every)}


@dataclass(frozen=True)
class Opening:
    """Does a part with a vault of its own."""

    url: str
    kms: str

    def __call__(self, part: Part) -> PartDone:
        vault, engine = self.opened()
        return vault.reencrypt_part(part, metadata=self.metadata(), engine=engine)

    def metadata(self) -> MetaData:
        return Base.metadata

    @cache  # noqa: B019 - for the life of a worker
    def opened(self) -> tuple[Vault, Engine]:
        vault, engine = Vault(self.url, kms=LocalKms(self.kms)), create_engine(self.url)
        vault.attach(engine, tenant_column="tenant_id")
        return vault, engine


@dataclass(frozen=True)
class Dying(Opening):
    """Is killed once, by SIGKILL, before its so manieth UPDATE; whoever comes later is not."""

    mark: str
    updates: int

    @cache  # noqa: B019 - for the life of a worker
    def opened(self) -> tuple[Vault, Engine]:
        vault, engine = Opening.opened.__wrapped__(self)
        seen: list[str] = []

        @event.listens_for(engine, "before_cursor_execute")
        def die(_connection: Any, _cursor: Any, sql: str, *_: Any) -> None:
            seen.extend(sql for _ in range(1) if sql.startswith("UPDATE"))
            if len(seen) >= self.updates and not Path(self.mark).exists():
                with suppress(FileExistsError):  # the other one was quicker, and one of them is to live
                    Path(self.mark).touch(exist_ok=False)
                    os.kill(os.getpid(), signal.SIGKILL)

        return vault, engine


@dataclass(frozen=True)
class Without(Opening):
    """Has other models than whoever cut the parts."""

    def metadata(self) -> MetaData:
        return MetaData()


@dataclass(frozen=True)
class Refused(Opening):
    """Asks a KMS that has been told to refuse since the parts were cut."""

    key: str

    def __call__(self, part: Part) -> PartDone:
        LocalKms(self.kms).disable_key(self.key)
        return super().__call__(part)
