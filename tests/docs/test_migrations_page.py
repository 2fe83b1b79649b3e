"""The environment and the revisions of docs/migrations.md run, and do what the page says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, Index, MetaData, String, inspect, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tests.support.alembic_app import AlembicApp

from pii_vault import EncryptedString, LocalKms, Vault
from pii_vault.envelope import parse
from pii_vault.errors import ConfigurationError
from pii_vault.keystore.upgrade import upgrade

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "migrations.md").read_text(encoding="utf-8")

pytestmark = [
    pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index"),
    pytest.mark.filterwarnings("ignore:autogenerate skipping metadata-specified expression-based index"),
]


def blocks(heading: str) -> list[str]:
    section = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


class Plain(DeclarativeBase):
    pass


class PlainCustomer(Plain):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(50))
    email: Mapped[str] = mapped_column(String(100), index=True)


class Sealed(DeclarativeBase):
    pass


class Customer(Sealed):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(50))
    email: Mapped[str] = mapped_column(EncryptedString(index=True))


class Renamed(DeclarativeBase):
    pass


class RenamedCustomer(Renamed):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(50))
    mail: Mapped[str] = mapped_column(EncryptedString(index=True, context="customers.email"))


class Unsearched(DeclarativeBase):
    pass


class UnsearchedPatient(Unsearched):
    __tablename__ = "patients"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    email: Mapped[str | None] = mapped_column(EncryptedString())


class Searched(DeclarativeBase):
    pass


class Patient(Searched):
    __tablename__ = "patients"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    email: Mapped[str | None] = mapped_column(EncryptedString(index=True))


Index("uq_patients_email", Patient.tenant_id, Patient.email.blind_index, unique=True)  # type: ignore[attr-defined]


class Page:
    """An application with the page's environment."""

    def __init__(self, url: str, make_engine: Callable[..., Engine], folder: Path) -> None:
        self.engine = make_engine(url)
        upgrade(self.engine)
        kms = LocalKms(folder / "kms.json")
        self.vault = Vault(url, kms=kms)
        self.vault.add_tenant("acme", key=kms.create_key())
        self.vault.attach(self.engine, tenant_column="tenant_id")
        given = "from alembic import context\n"
        given += "Base, engine, vault = (context.config.attributes[each] for each in ('base', 'engine', 'vault'))\n"
        more = {"vault": self.vault}
        self.app = AlembicApp(folder / "app", make_engine(url), env=given + blocks("The environment")[0], more=more)

    def become(self, base: Any) -> None:
        self.app.more["base"] = base

    def upgrade(self, base: Any, *revisions: str) -> None:
        self.become(base)
        for each in revisions:
            self.app.write_revision(each)
        self.app.upgrade(base.metadata)
        self.app.check(base.metadata)


@pytest.fixture
def page(database_url: str, make_engine: Callable[..., Engine], tmp_path: Path) -> Any:
    made = Page(database_url, make_engine, tmp_path)
    yield made
    made.vault.close()


def test_a_column_is_sealed_renamed_and_opened_again(page: Page) -> None:
    sealing, renaming = blocks("Seal a column that holds plaintext")[0], blocks("Rename an encrypted column")[0]
    Plain.metadata.create_all(page.engine)
    with Session(page.engine) as session, session.begin():
        session.add(PlainCustomer(tenant_id="acme", email="ada@example.com"))
    page.upgrade(Sealed, sealing)
    with page.vault.tenant("acme"), Session(page.engine) as session:
        assert session.scalars(select(Customer.id).where(Customer.email == "ada@example.com")).all() == [1]
    page.upgrade(Renamed, renaming)
    with page.vault.tenant("acme"), Session(page.engine) as session:
        assert session.scalars(select(RenamedCustomer.id).where(RenamedCustomer.mail == "ada@example.com")).all() == [1]
    back = "op.rename_encrypted_column('customers', 'mail', 'email', pii_vault.EncryptedString(index=True), "
    back += "keep_context=True, old_context='customers.email')"
    page.upgrade(Sealed, f"def upgrade():\n    {back}\n")
    page.upgrade(Plain, sealing[sealing.index("def downgrade") :].replace("downgrade", "upgrade"))
    with Session(page.engine) as session:
        assert session.scalars(select(PlainCustomer.email)).all() == ["ada@example.com"]
    assert [each["name"] for each in inspect(page.engine).get_indexes("customers")] == ["ix_customers_email"]


def test_autogenerate_writes_what_the_page_shows(page: Page) -> None:
    def words(text: str) -> set[str]:
        return set(re.findall(r"[\w.]+(?==|\()|'\w+'", text.replace('"', "'").replace("op.f(", "")))

    page.become(Plain)
    page.app.autogenerate(Plain.metadata)
    page.become(Sealed)
    written = page.app.autogenerate(Sealed.metadata)
    assert words(blocks("Seal a column that holds plaintext")[0]) <= words(written)


def test_indexes_are_made_and_built_and_values_get_the_newest_keys(page: Page) -> None:
    by_hand, building = blocks("Indexes over tokens")
    (again,) = blocks("Seal values with the newest keys")
    page.become(Unsearched)
    revision = page.app.autogenerate(Unsearched.metadata)
    assert "sa.LargeBinary()" in revision
    assert "pii_vault" not in revision
    with page.vault.tenant("acme"), Session(page.engine) as session, session.begin():
        session.add(UnsearchedPatient(tenant_id="acme", email="a@b.c"))
    given = "Base, vault = (context.config.attributes[x] for x in ('base', 'vault'))\n"
    page.upgrade(Searched, by_hand, given + building)
    page.vault.rotate("acme")
    page.upgrade(Searched, again)
    with page.vault.tenant("acme"), Session(page.engine) as session:
        assert session.scalars(select(Patient).where(Patient.email == "a@b.c")).one().id == 1
    with page.engine.connect() as connection:
        sealed = connection.exec_driver_sql("SELECT email FROM patients").scalar_one()
    assert parse(bytes(sealed)).version == 2


def test_what_moves_values_is_refused_without_a_database(page: Page) -> None:
    page.app.options = {}
    page.become(Sealed)
    sealing = blocks("Seal a column that holds plaintext")[0]
    reencrypting = blocks("Seal values with the newest keys")[0]
    app = AlembicApp(page.app.folder.parent / "offline", page.engine)
    app.write_revision(sealing)
    with pytest.raises(ConfigurationError, match="alembic upgrade"):
        app.sql(MetaData())
    next((app.folder / "versions").glob("*.py")).unlink()
    app.write_revision(reencrypting)
    with pytest.raises(ConfigurationError, match="pii-vault reencrypt"):
        app.sql(MetaData())
