"""An application whose plaintext column becomes a sealed one, and processes of its releases, as statements."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, LargeBinary, MetaData, String, bindparam, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from tests.support.world import World

from pii_vault import EncryptedString
from pii_vault.adoption.adopt import Adoption
from pii_vault.errors import PiiVaultError
from pii_vault.orm.attachment import Attachment
from pii_vault.orm.processors import open_processor, seal_processor
from pii_vault.stages import Stage

DATABASES = {"sqlite": "sqlite_url", "postgresql": "postgres_url", "mariadb": "mariadb_url"}
EMAILS = ["ann@a.example", "bea@a.example"]
UP = ("added", "filled", "verified", "switched", "retired", "emptied")


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str | None] = mapped_column(String(50))
    email: Mapped[str | None] = mapped_column(String(60))
    email_sealed: Mapped[str | None] = mapped_column(EncryptedString().adopting("email", falls_back=True))
    nick: Mapped[str | None] = mapped_column(String(20))


class People:
    """The table, as the application's processes see it."""

    context = "people.email"
    _kind = EncryptedString()

    def __init__(self, world: World, engine: Engine, metadata: MetaData = Base.metadata) -> None:
        self.world = world
        self.engine = engine
        self.metadata = metadata

    @property
    def adoption(self) -> Adoption:
        return self.world.vault.adoption(
            self.context, metadata=self.metadata, engine=self.engine, tenant_column="tenant_id"
        )

    def up(self, to: str, **more: Any) -> None:
        while self.adoption.status(count=False).stage != to:
            self.adoption.next(quiet=0, **more)

    @property
    def stage(self) -> Stage:
        return self.adoption.status(count=False).stage

    @property
    def drift(self) -> tuple[str, ...]:
        return self.adoption.status().drift

    def sql(self, statement: str, **values: Any) -> Any:
        """Run a statement as somebody does who knows nothing of the vault."""
        with self.engine.begin() as connection:
            return connection.execute(text(statement).bindparams(*self._bound(values)), values)

    @staticmethod
    def _bound(values: dict[str, Any]) -> list[Any]:
        return [bindparam(name, type_=LargeBinary()) for name, value in values.items() if isinstance(value, bytes)]

    def sealed(self, value: Any, tenant: str = "acme", context: str = context, kind: Any = _kind) -> bytes:
        with self.world.vault.tenant(tenant):
            hold = Attachment(self.world.vault._parts.keyring, None, None)
            return bytes(seal_processor(hold, context, kind.encoding())(value))

    def opened(self, value: Any, tenant: str = "acme") -> Any:
        if value is None:
            return None
        with self.world.vault.tenant(tenant):
            hold = Attachment(self.world.vault._parts.keyring, None, None)
            return open_processor(hold, self.context, self._kind.encoding())(bytes(value))

    def add(self, *emails: str | None, tenant: str = "acme") -> None:
        for email in emails:
            self.sql("INSERT INTO people (tenant_id, email) VALUES (:t, :e)", t=tenant, e=email)

    def both(self, key: int, email: str | None, tenant: str = "acme") -> None:
        """Write as the release does that writes both columns."""
        new = None if email is None else self.sealed(email, tenant)
        self.sql("UPDATE people SET email = :e, email_sealed = :s WHERE id = :id", e=email, s=new, id=key)

    def rows(self) -> list[tuple[Any, Any]]:
        """Return plaintext and opened value of each row."""
        with self.engine.connect() as connection:
            found = connection.execute(text("SELECT tenant_id, email, email_sealed FROM people ORDER BY id")).all()
        return [(each[1], self.opened(each[2], each[0])) for each in found]


def everything(people: People) -> list[Any]:
    """Return what is in the table, and what is known of its adoption."""
    status = people.adoption.status(count=False)
    with people.engine.connect() as connection:
        rows = connection.execute(text("SELECT * FROM people ORDER BY id")).all()
    return [list(map(tuple, rows)), status.steps, status.observed.guard]


@contextmanager
def nothing_changed(people: People, error: type[PiiVaultError], what: str) -> Iterator[None]:
    """Expect an error from a block that changes nothing and shows no value."""
    before = everything(people)
    with pytest.raises(error, match=what) as caught:
        yield
    assert everything(people) == before
    assert not any(email in str(caught.value) for email in EMAILS)


def next_refused(people: People, error: type[PiiVaultError], what: str) -> None:
    with nothing_changed(people, error, what):
        people.adoption.next(quiet=0)
