"""What a column can declare: which slot each token takes, and what is refused before anything is sealed."""

from __future__ import annotations

import enum
from typing import Any

import pytest
from sqlalchemy import Column, Index, Integer, MetaData, String, Table, UniqueConstraint, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pii_vault import (
    After,
    BlindIndex,
    Bucket,
    EncryptedArray,
    EncryptedBoolean,
    EncryptedDate,
    EncryptedEnum,
    EncryptedInteger,
    EncryptedJSON,
    EncryptedString,
    EncryptedType,
    LastChars,
    Prefix,
)
from pii_vault.errors import ConfigurationError, UnsupportedOperationError


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


def table(kind: Any, name: str = "email", metadata: MetaData | None = None) -> Table:
    return Table("people", metadata or MetaData(), Column("id", Integer, primary_key=True), Column(name, kind))


def placed(kind: EncryptedType[Any]) -> list[tuple[int, str] | None]:
    slots = table(kind).c.email.type.slots
    return [None if slot is None else (slot.number, slot.label) for slot in slots]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (EncryptedString(), []),
        (EncryptedString(index=True), [(0, "")]),
        (EncryptedString(tokens={"last4": LastChars(4)}), [(0, "last4")]),
        (EncryptedString(index=True, tokens={"b": LastChars(4), "a": Prefix(3)}), [(0, ""), (1, "b"), (2, "a")]),
        (EncryptedString(index=BlindIndex(slot=2)), [None, None, (2, "")]),
        (EncryptedString(index=BlindIndex(slot=1), tokens={"a": After("@")}), [(0, "a"), (1, "")]),
        (EncryptedString(tokens={"a": BlindIndex(slot=0), "b": Prefix(1)}, index=True), [(0, "a"), (1, ""), (2, "b")]),
    ],
)
def test_each_token_has_a_slot(kind: EncryptedType[Any], expected: list[Any]) -> None:
    assert placed(kind) == expected


def test_the_index_is_named_after_the_column_unless_it_has_a_name() -> None:
    slot = table(EncryptedString(index=True)).c.email.type.slot()
    assert (slot.index, slot.form.text, slot.start) == ("people.email", "text;whole;128", 11)
    named = table(EncryptedString(index=BlindIndex(name="email", normalise=("strip", "casefold"), bits=20)))
    slot = named.c.email.type.slot()
    assert (slot.index, slot.form.text) == ("email", "text;strip/1;casefold/1;whole;20")
    kept = table(EncryptedString(context="customers.mail", index=True)).c.email.type.slot()
    assert kept.index == "customers.mail"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: BlindIndex(unique=True, bits=64), "over whole values and all 128 bits"),
        (lambda: BlindIndex(unique=True, part=LastChars(4)), "over whole values"),
        (lambda: BlindIndex(normalise="casefold"), r"a tuple of names .*normalise=\('casefold',\)"),  # type: ignore[arg-type]
        (lambda: BlindIndex(slot=15), "a slot is 0 to 14"),
        (lambda: BlindIndex(slot=-1), "a slot is 0 to 14"),
        (lambda: EncryptedString(tokens={"Last4": LastChars(4)}), "a token's name"),
        (lambda: EncryptedString(tokens={"": LastChars(4)}), "a token's name"),
        (lambda: EncryptedString(tokens={"last4": 4}), "token 'last4' is a int"),  # type: ignore[dict-item]
        (lambda: table(EncryptedString(index=BlindIndex(bits=0))), "1 to 128 bits"),
        (lambda: table(EncryptedString(index=BlindIndex(normalise=("lower",)))), "no normaliser 'lower'"),
        (lambda: table(EncryptedInteger(index=BlindIndex(normalise=("casefold",)))), "only text has"),
        (lambda: table(EncryptedInteger(tokens={"last4": LastChars(4)})), "only text has"),
        (lambda: table(EncryptedString(tokens={"decade": Bucket(years=10)})), "Bucket|bucket"),
        (lambda: table(EncryptedJSON(index=True)), "json values have no blind index"),
        (lambda: table(EncryptedBoolean(index=True)), r"so few values.*BlindIndex\(low_entropy=True\)"),
        (lambda: table(EncryptedEnum(Colour, index=True)), r"so few values.*BlindIndex\(low_entropy=True\)"),
        (lambda: table(EncryptedString(index=BlindIndex(slot=0), tokens={"a": BlindIndex(slot=0)})), "one slot"),
        (lambda: table(EncryptedString(tokens={f"a{n}": Prefix(n + 1) for n in range(16)})), "more than 15"),
        (lambda: table(EncryptedString()).c.email.blind_index, r"'people\.email' has no blind index .*index=True"),
        (
            lambda: table(EncryptedString(tokens={"last4": LastChars(4)})).c.email.token("first4"),
            r"has no token 'first4'; it has 'last4'",
        ),
    ],
)
def test_what_cannot_be_declared_says_why(make: Any, said: str) -> None:
    with pytest.raises((ConfigurationError, UnsupportedOperationError), match=said):
        make()


def test_arrays_take_no_index() -> None:
    with pytest.raises(TypeError):
        EncryptedArray(EncryptedString(), index=True)  # type: ignore[call-arg]


def test_few_values_are_searched_by_who_says_so() -> None:
    assert placed(EncryptedBoolean(index=BlindIndex(low_entropy=True))) == [(0, "")]
    assert placed(EncryptedEnum(Colour, index=BlindIndex(low_entropy=True))) == [(0, "")]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (EncryptedString(index=True), "EncryptedString(index=True)"),
        (
            EncryptedString(context="a.b", index=BlindIndex(unique=True), tokens={"last4": LastChars(4)}),
            "EncryptedString(context='a.b', index=BlindIndex(unique=True), tokens={'last4': LastChars(count=4)})",
        ),
        (
            EncryptedDate(tokens={"d": Bucket(years=10)}),
            "EncryptedDate(tokens={'d': Bucket(years=10)})",
        ),
    ],
)
def test_a_type_shows_what_it_declares(kind: EncryptedType[Any], expected: str) -> None:
    assert repr(kind) == expected


def test_a_type_that_declares_something_else_is_another_one_to_the_statement_cache() -> None:
    kinds = [
        EncryptedString(),
        EncryptedString(index=True),
        EncryptedString(index=BlindIndex(unique=True)),
        EncryptedString(index=BlindIndex(name="x")),
        EncryptedString(index=BlindIndex(bits=8)),
        EncryptedString(tokens={"a": LastChars(4)}),
        EncryptedString(tokens={"a": LastChars(5)}),
        EncryptedString(tokens={"b": LastChars(4)}),
    ]
    keys = {table(kind).c.email.type._static_cache_key for kind in kinds}
    assert len(keys) == len(kinds)


def indexes(of: Table) -> list[tuple[str, bool, str]]:
    return sorted((str(each.name), each.unique, str(next(iter(each.expressions)))) for each in of.indexes)


def test_the_table_gets_an_index_for_each_token() -> None:
    made = table(EncryptedString(index=BlindIndex(unique=True), tokens={"last4": LastChars(4)}))
    assert indexes(made) == [
        ("ix_people_email_blind", True, "substr(people.email, 11, 16)"),
        ("ix_people_email_last4", False, "substr(people.email, 27, 16)"),
    ]
    assert indexes(table(EncryptedString(index=BlindIndex(create=False)))) == []


def test_a_copy_of_the_table_has_them_once() -> None:
    made = table(EncryptedString(index=BlindIndex(unique=True)))
    assert indexes(made.to_metadata(MetaData())) == indexes(made)


def test_an_index_of_ones_own_is_over_the_token() -> None:
    class Base(DeclarativeBase):
        pass

    class Person(Base):
        __tablename__ = "people"
        id: Mapped[int] = mapped_column(primary_key=True)
        tenant_id: Mapped[str]
        email: Mapped[str] = mapped_column(EncryptedString(index=BlindIndex(create=False)))

    Index("ix_mine", Person.tenant_id, Person.email.blind_index, unique=True)
    (index,) = Person.__table__.indexes  # type: ignore[attr-defined]
    assert [str(each) for each in index.expressions] == ["people.tenant_id", "substr(people.email, 11, 16)"]


@pytest.mark.parametrize(
    "part",
    [
        lambda people: Index("ix", people.c.email),
        lambda people: Index("ix", people.c.id, people.c.email),
        lambda people: Index("ix", func.lower(people.c.email)),
        lambda people: Index("ix", func.coalesce(people.c.email.blind_index, people.c.email)),
        lambda people: people.append_constraint(UniqueConstraint(people.c.id, people.c.email)),
    ],
)
def test_nothing_else_of_the_column_is_indexed(part: Any) -> None:
    people = table(EncryptedString(index=BlindIndex(create=False)))
    with pytest.raises(ConfigurationError, match=r"people\.email is encrypted.*index=BlindIndex\(unique=True\)"):
        part(people)


def test_a_long_name_is_cut() -> None:
    name = "c" * 60
    made = Table(
        "t" * 30, MetaData(), Column("id", String(3), primary_key=True), Column(name, EncryptedString(index=True))
    )
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.schema import CreateIndex

    (index,) = made.indexes
    rendered = str(CreateIndex(index).compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]
    assert len(rendered.split()[2]) <= 63
