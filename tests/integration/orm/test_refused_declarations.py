"""A column that could not work, or would store plaintext, is refused where it is declared, and the message names it."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import (
    ARRAY,
    Computed,
    FetchedValue,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Sequence,
    String,
    Table,
    TypeDecorator,
    UniqueConstraint,
    func,
    literal,
    select,
    text,
)
from sqlalchemy import Column as C
from sqlalchemy.dialects.postgresql import ExcludeConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pii_vault import EncryptedInteger, EncryptedString
from pii_vault.errors import ConfigurationError


class Wrapped(TypeDecorator[str]):
    impl = EncryptedString
    cache_ok = True


def column(**options: Any) -> C[Any]:
    return C("email", EncryptedString(), **options)


OTHERS = Table("others", MetaData(), C("id", Integer, primary_key=True), C("email", String, unique=True))

PARTS: dict[str, Callable[[], list[Any]]] = {
    "primary key": lambda: [column(primary_key=True)],
    "primary key constraint": lambda: [column(), PrimaryKeyConstraint("email")],
    "foreign key": lambda: [C("email", EncryptedString(), ForeignKey("others.email"))],
    "foreign key to a column object": lambda: [C("email", EncryptedString(), ForeignKey(OTHERS.c.email))],
    "foreign key constraint": lambda: [column(), ForeignKeyConstraint(["email"], ["others.email"])],
    "unique": lambda: [column(unique=True)],
    "unique constraint": lambda: [column(), UniqueConstraint("id", "email")],
    "unique constraint of column objects": lambda: [c := column(), UniqueConstraint(c)],
    "exclude constraint": lambda: [column(), ExcludeConstraint(("email", "="))],
    "index": lambda: [column(index=True)],
    "index in the table": lambda: [column(), Index("ix", "id", "email")],
    "index on a column object": lambda: [c := column(), Index("ix", c)],
    "index on an expression": lambda: [c := column(), Index("ix", func.lower(c))],
    "server default": lambda: [column(server_default="x")],
    "server default by text": lambda: [column(server_default=text("'x'"))],
    "server default fetched": lambda: [column(server_default=FetchedValue())],
    "server onupdate": lambda: [column(server_onupdate=FetchedValue())],
    "computed": lambda: [C("email", EncryptedString(), Computed("id"))],
    "identity": lambda: [C("email", EncryptedInteger(), Identity())],
    "default of SQL": lambda: [column(default=func.lower("X"))],
    "default of a literal": lambda: [column(default=literal("x"))],
    "default of text": lambda: [column(default=text("'x'"))],
    "default of a select": lambda: [column(default=select(OTHERS.c.email).scalar_subquery())],
    "default of a sequence": lambda: [C("email", EncryptedInteger(), Sequence("s"))],
    "onupdate of SQL": lambda: [column(onupdate=func.lower("X"))],
    "type inside a type decorator": lambda: [C("email", Wrapped())],
    "type inside a type decorator with a context": lambda: [C("email", Wrapped(context="people.email"))],
    "type inside an array": lambda: [C("email", ARRAY(EncryptedString(context="people.email")))],
}


@pytest.mark.parametrize("name", PARTS)
def test_an_encrypted_column_is_refused_as(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"people\.email"):
        Table("people", MetaData(), C("id", Integer), *PARTS[name]())


@pytest.mark.parametrize("later", [lambda t: Index("ix", t.c.email), lambda t: Index("ix", func.lower(t.c.email))])
def test_an_index_is_refused_that_is_declared_after_the_table(later: Callable[[Table], Any]) -> None:
    people = Table("people", MetaData(), C("id", Integer), column())
    with pytest.raises(ConfigurationError, match=r"people\.email"):
        later(people)


def test_a_constraint_is_refused_that_is_appended_to_the_table() -> None:
    people = Table("people", MetaData(), C("id", Integer), column())
    with pytest.raises(ConfigurationError, match=r"people\.email"):
        people.append_constraint(UniqueConstraint(people.c.email))


@pytest.mark.parametrize("option", ["primary_key", "unique", "index"])
def test_a_declarative_class_is_refused(option: str) -> None:
    class Base(DeclarativeBase):
        pass

    with pytest.raises(ConfigurationError, match=r"people\.email"):

        class Person(Base):
            __tablename__ = "people"
            id: Mapped[int] = mapped_column(primary_key=True)
            email: Mapped[str] = mapped_column(EncryptedString(), **{option: True})


def test_a_python_default_is_allowed() -> None:
    people = Table(
        "people", MetaData(), column(default="x", onupdate=lambda: "y"), C("age", EncryptedInteger(), default=0)
    )
    assert people.c.email.type.context == "people.email"


def test_an_index_on_plain_columns_is_allowed() -> None:
    people = Table("people", MetaData(), C("id", Integer, index=True), C("name", String, unique=True), column())
    assert len(people.indexes) == 1


def test_two_columns_with_one_context_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"people\.second and people\.first have the same context 'mail'"):
        Table("people", MetaData(), *(C(name, EncryptedString(context="mail")) for name in ("first", "second")))


def test_two_tables_with_one_context_are_refused() -> None:
    metadata = MetaData()
    Table("people", metadata, column())
    with pytest.raises(ConfigurationError, match=r"old_people\.email and people\.email have the same context"):
        Table("old_people", metadata, C("email", EncryptedString(context="people.email")))


def test_two_metadata_may_use_one_context() -> None:
    for _ in range(2):
        assert Table("people", MetaData(), column()).c.email.type.context == "people.email"


def test_an_encrypted_type_has_no_variants() -> None:
    with pytest.raises(ConfigurationError, match="EncryptedString has no variants"):
        EncryptedString().with_variant(String(), "sqlite")


def test_contexts_are_part_of_the_cache_key() -> None:
    types = [EncryptedString(context="a"), EncryptedString(context="b"), EncryptedInteger(context="a")]
    assert len({each._static_cache_key for each in types}) == 3
    assert EncryptedString(context="a")._static_cache_key == types[0]._static_cache_key
