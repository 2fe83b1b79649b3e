"""What docs/search.md claims about statements is what happens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

import pii_vault
from pii_vault import LocalKms, Vault
from pii_vault.blind_index import normalisers
from pii_vault.errors import UnsupportedOperationError

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "search.md").read_text(encoding="utf-8")


def python_block(heading: str) -> str:
    section = PAGE.split(f"# {heading}\n", 1)[1]
    return re.search(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)[1]  # type: ignore[index]


class Base(DeclarativeBase):
    pass


NAMES: dict[str, Any] = {
    **vars(sqlalchemy),
    **vars(pii_vault),
    "Base": Base,
    "Mapped": Mapped,
    "mapped_column": mapped_column,
    "date": date,
    "__name__": __name__,
}
exec(python_block("Declare"), NAMES)
Customer, Call = NAMES["Customer"], NAMES["Call"]


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[Any]:
    kms = LocalKms(tmp_path / "kms.json")
    vault = Vault(f"sqlite:///{tmp_path / 'keys.sqlite3'}", kms=kms)
    vault.create_all()
    vault.add_tenant("acme", key=kms.create_key())
    engine = create_engine(f"sqlite:///{tmp_path / 'app.sqlite3'}")
    made = sessionmaker(engine)
    vault.attach(engine, made, tenant_column="tenant_id")
    Base.metadata.create_all(engine)
    with vault.tenant("acme"):
        with made.begin() as session:
            ada = Customer(email="Ada@example.com", phone="+44 201234", ssn="078-05-1120", born=date(1815, 12, 10))
            session.add_all((ada, Customer(email="bob@example.com", notes="called"), Call(number="44-201234")))
        yield made
    engine.dispose()
    vault.close()


@pytest.mark.parametrize("line", python_block("What works").splitlines())
def test_what_the_page_calls_working_finds_something(line: str, sessions: Any) -> None:
    with sessions() as session:
        result = session.execute(eval(line, dict(NAMES)))
        if line.startswith("select"):
            rows = result.all()
            assert rows
            assert rows[0][0] != 0
        else:
            assert result.rowcount == 1


@pytest.mark.parametrize("line", python_block("What is refused").splitlines())
def test_what_the_page_calls_refused_is(line: str, sessions: Any) -> None:
    with sessions() as session, pytest.raises(UnsupportedOperationError):
        session.execute(eval(line, dict(NAMES)))


def test_a_declaration_that_changed_and_a_normaliser_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalisers, "_registered", dict(normalisers._registered))
    changed = eval(python_block("When a declaration changes"), dict(NAMES))
    assert [(slot.number, slot.label) for slot in changed.slots] == [(0, "before"), (1, "")]
    exec(python_block("Normalisers of your own"), dict(NAMES))
    assert pii_vault.EncryptedString(index=pii_vault.BlindIndex(normalise=("plate",))).slots[0].form.text == (
        "text;plate/1;whole;128"
    )


def test_the_names_on_the_page_are_there() -> None:
    for name in ("build_index", "rotate_index", "drop_index", "index_status"):
        assert hasattr(Vault, name)
    for name in re.findall(r"`(\w+Error)`", PAGE):
        assert hasattr(pii_vault.errors, name) or name == "IntegrityError"
