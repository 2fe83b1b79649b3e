"""However a class is mapped, its encrypted attributes are stored sealed, each bound to its column, and come back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from sqlalchemy import (
    Column,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    func,
    insert,
    inspect,
    select,
    text,
    type_coerce,
    update,
)
from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.ext.declarative import ConcreteBase
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.ext.mutable import MutableDict, MutableList
from sqlalchemy.orm import (
    DeclarativeBase,
    DynamicMapped,
    Mapped,
    MappedAsDataclass,
    WriteOnlyMapped,
    aliased,
    column_property,
    composite,
    declared_attr,
    deferred,
    mapped_column,
    query_expression,
    registry,
    relationship,
    selectin_polymorphic,
    synonym,
    validates,
    with_expression,
    with_polymorphic,
)
from tests.support.world import World

from pii_vault import EncryptedArray, EncryptedInteger, EncryptedJSON, EncryptedString
from pii_vault.errors import OpenError, UnsupportedOperationError


class Secret(str):
    """A type of the application's, for type_annotation_map."""

    __slots__ = ()


Phone = Annotated[str, mapped_column(EncryptedString())]


class Base(DeclarativeBase):
    type_annotation_map = {Secret: EncryptedString(), str: String(100)}


class Owned:
    """A mixin: each table gets its own columns."""

    tenant_id: Mapped[str] = mapped_column(default="acme")
    note: Mapped[str | None] = mapped_column(EncryptedString())

    @declared_attr
    def remark(cls) -> Mapped[str | None]:
        return mapped_column(EncryptedString())


class AbstractPerson(Owned, Base):
    __abstract__ = True
    id: Mapped[int] = mapped_column(primary_key=True)
    nick: Mapped[str | None] = mapped_column(EncryptedString())


class Left(AbstractPerson):
    __tablename__ = "lefts"


class Right(AbstractPerson):
    __tablename__ = "rights"
    left_id: Mapped[int | None] = mapped_column(ForeignKey("lefts.id"))


class Mapping(Owned, Base):
    __tablename__ = "mappings"
    id: Mapped[int] = mapped_column(primary_key=True)
    first: Mapped[Secret | None]
    second: Mapped[Secret | None]
    home: Mapped[Phone | None]
    work: Mapped[Phone | None]
    renamed: Mapped[str | None] = mapped_column("stored_name", EncryptedString())
    later: Mapped[str | None] = deferred(mapped_column(EncryptedString()))
    also_first = synonym("first")
    upper_id = column_property(func.coalesce(id, 0) + 1)  # noqa: A003

    @hybrid_property
    def both(self) -> str:
        return f"{self.first} {self.second}"

    @hybrid_property
    def has_home(self) -> bool:
        return self.home is not None

    @has_home.inplace.expression
    @classmethod
    def _has_home(cls) -> Any:
        return cls.home.is_not(None)

    @validates("work")
    def _check(self, _key: str, value: Any) -> Any:
        return value and value.strip()


@dataclasses.dataclass
class Name:
    given: str | None
    family: str | None


class Composed(Base):
    __tablename__ = "composed"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(default="acme")
    name: Mapped[Name] = composite(
        mapped_column("given", EncryptedString(), nullable=True),
        mapped_column("family", EncryptedString(), nullable=True),
    )
    letters: Mapped[list[Letter]] = relationship(back_populates="owner", order_by="Letter.id")
    words: AssociationProxy[list[str]] = association_proxy(
        "letters", "word", creator=lambda word: Letter(word=word, tenant_id="acme")
    )
    written: WriteOnlyMapped[Letter] = relationship(viewonly=False, overlaps="letters,owner", order_by="Letter.id")
    dynamic: DynamicMapped[Letter] = relationship(overlaps="letters,owner,written", order_by="Letter.id")


class Letter(Base):
    __tablename__ = "letters"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    owner_id: Mapped[int | None] = mapped_column(ForeignKey("composed.id"))
    word: Mapped[str] = mapped_column(EncryptedString())
    owner: Mapped[Composed | None] = relationship(back_populates="letters", overlaps="written,dynamic")


class AsDataclass(MappedAsDataclass, Base):
    __tablename__ = "dataclasses"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(EncryptedString(), repr=False)
    tenant_id: Mapped[str] = mapped_column(default="acme")
    age: Mapped[int | None] = mapped_column(EncryptedInteger(), default=None)


class Document(Base):
    __tablename__ = "documents"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(default="acme")
    prefs: Mapped[dict[str, Any] | None] = mapped_column(MutableDict.as_mutable(EncryptedJSON()))
    tags: Mapped[list[str] | None] = mapped_column(MutableList.as_mutable(EncryptedArray(EncryptedString())))
    items: Mapped[list[Any] | None] = mapped_column(MutableList.as_mutable(EncryptedJSON()))


class Defaulted(Base):
    __tablename__ = "defaulted"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(default="acme")
    email: Mapped[str] = mapped_column(EncryptedString(), default="default")
    phone: Mapped[str] = mapped_column(EncryptedString(), insert_default=lambda: "called", onupdate=lambda: "updated")


class Animal(Base):
    __tablename__ = "animals"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(default="acme")
    kind: Mapped[str]
    owner: Mapped[str | None] = mapped_column(EncryptedString())
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}


class Cat(Animal):
    vet: Mapped[str | None] = mapped_column(EncryptedString())
    __mapper_args__ = {"polymorphic_identity": "cat"}


class Dog(Animal):
    __tablename__ = "dogs"
    id: Mapped[int] = mapped_column(ForeignKey("animals.id"), primary_key=True)
    chip: Mapped[str | None] = mapped_column(EncryptedString())
    __mapper_args__ = {"polymorphic_identity": "dog"}


class Place(Base):
    __tablename__ = "places"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(default="acme")
    street: Mapped[str | None] = mapped_column(EncryptedString())


class Shop(Place):
    __tablename__ = "shops"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(default="acme")
    street: Mapped[str | None] = mapped_column(EncryptedString())
    till: Mapped[str | None] = mapped_column(EncryptedString())
    __mapper_args__ = {"concrete": True}


class Device(ConcreteBase, Base):
    __tablename__ = "devices"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(default="acme")
    __mapper_args__ = {"polymorphic_identity": "device", "concrete": True}


class Handset(Device):
    __tablename__ = "handsets"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(default="acme")
    number: Mapped[str | None] = mapped_column(EncryptedString())
    __mapper_args__ = {"polymorphic_identity": "handset", "concrete": True}


class Ghost(Base):
    """Statements on it are refused; what a mapper adds by itself counts too."""

    __tablename__ = "ghosts"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(default="acme")
    name: Mapped[str | None] = mapped_column(EncryptedString())
    other: Mapped[str | None] = mapped_column(EncryptedString())
    extra: Mapped[str | None] = query_expression()
    namesakes: Mapped[list[Ghost]] = relationship(
        primaryjoin="foreign(Ghost.name) == remote(Ghost.other)", viewonly=True, uselist=True
    )

    @hybrid_property
    def loud(self) -> str:
        return (self.name or "").upper()

    @loud.inplace.expression
    @classmethod
    def _loud(cls) -> Any:
        return func.upper(cls.name)


class Lowered(Base):
    __tablename__ = "lowered"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(default="acme")
    name: Mapped[str | None] = mapped_column(EncryptedString())


Lowered.lower = column_property(func.lower(Lowered.__table__.c.name))

imperative = registry()


class Imperative:
    def __init__(self, email: str) -> None:
        self.email = email


imperative.map_imperatively(
    Imperative,
    Table(
        "imperatives",
        imperative.metadata,
        Column("id", Integer, primary_key=True),
        Column("tenant_id", String(100)),
        Column("mail", EncryptedString(), key="email"),
    ),
)


@pytest.fixture(scope="module")
def styled_world(_shared_world: World) -> Iterator[World]:
    for metadata in (Base.metadata, imperative.metadata):
        metadata.create_all(_shared_world.engine)
    yield _shared_world
    for metadata in (Base.metadata, imperative.metadata):
        metadata.drop_all(_shared_world.engine)


@pytest.fixture
def world(styled_world: World) -> Iterator[World]:
    yield styled_world
    with styled_world.engine.begin() as connection:
        for metadata in (Base.metadata, imperative.metadata):
            for table in reversed(metadata.sorted_tables):
                connection.execute(table.delete())


def context(attribute: Any) -> str:
    found: str = inspect(attribute).property.columns[0].type.context
    return found


def test_one_type_object_for_many_columns_binds_each_to_its_own() -> None:
    names = ["first", "second", "home", "work", "note", "remark", "later"]
    assert [context(getattr(Mapping, name)) for name in names] == [f"mappings.{name}" for name in names]
    assert context(Mapping.renamed) == "mappings.stored_name"
    assert [context(c.note) for c in (Left, Right)] == ["lefts.note", "rights.note"]
    assert [context(c.nick) for c in (Left, Right)] == ["lefts.nick", "rights.nick"]
    assert [context(c.remark) for c in (Left, Right)] == ["lefts.remark", "rights.remark"]
    assert Base.type_annotation_map[Secret].context is None


def test_columns_of_every_style_come_back(world: World) -> None:
    values = {"first": Secret("1"), "second": Secret("2"), "home": "3", "work": "4", "renamed": "5", "later": "6"}
    values |= {"note": "7", "remark": "8"}
    with world.session() as session:
        session.add(Mapping(id=1, **{**values, "work": " 4 "}))
    with world.session() as session:
        found = session.get_one(Mapping, 1)
        assert {name: getattr(found, name) for name in values} == values
        assert (found.also_first, found.both, found.has_home, found.upper_id) == ("1", "1 2", True, 2)
        assert session.execute(select(Mapping.also_first, Mapping.renamed)).one() == ("1", "5")
        assert session.scalars(select(Mapping.id).where(Mapping.has_home)).all() == [1]
        session.execute(update(Mapping).values({Mapping.renamed: "new", "also_first": "synonym"}))
        session.execute(update(Mapping), [{"id": 1, "later": "much"}])
        session.expire_all()
        assert (found.renamed, found.first, found.later) == ("new", "synonym", "much")
        stored = session.execute(text("select first, stored_name, later from mappings")).one()
        assert all(bytes(cell)[0] == 0xFA for cell in stored)


def test_an_attribute_under_another_name_takes_part_in_bulk_writes(world: World) -> None:
    with world.session() as session:
        session.execute(insert(Mapping), [{"id": 1, "renamed": "a"}, {"id": 2, "renamed": "b"}])
        session.execute(insert(Mapping).values([{"id": 3, "renamed": "c"}, {"id": 4, "renamed": "d"}]))
        session.bulk_update_mappings(Mapping, [{"id": 2, "renamed": "B"}])
        found = session.execute(select(Mapping.id, Mapping.renamed).order_by(Mapping.id)).all()
        assert found == [(1, "a"), (2, "B"), (3, "c"), (4, "d")]
        assert all(bytes(each)[0] == 0xFA for each in session.scalars(text("select stored_name from mappings")))


def test_mixins_and_abstract_bases(world: World) -> None:
    with world.session() as session:
        session.add_all([Left(id=1, note="l", nick="left", remark="r"), Right(id=1, note="r", nick="right", left_id=1)])
    with world.session() as session:
        row = session.execute(select(Left.note, Left.nick, Left.remark, Right.note, Right.nick).join(Right)).one()
        assert row == ("l", "left", "r", "r", "right")


def test_a_composite_of_encrypted_columns(world: World) -> None:
    with world.session() as session:
        session.add(Composed(id=1, name=Name("Ada", "Lovelace")))
    with world.session() as session:
        found = session.get_one(Composed, 1)
        assert found.name == Name("Ada", "Lovelace")
        assert session.scalars(select(Composed.name)).one() == Name("Ada", "Lovelace")
        session.execute(update(Composed).values({Composed.name: Name("Augusta", None)}))
        session.expire_all()
        assert found.name == Name("Augusta", None)
        with pytest.raises(UnsupportedOperationError, match=r"composed\.given"):
            select(Composed).where(Composed.name == Name("Ada", "Lovelace"))


def test_an_association_proxy_and_big_collections(world: World) -> None:
    with world.session() as session:
        session.add(owner := Composed(id=1, name=Name(None, None)))
        owner.words.extend(["alpha", "beta"])
        session.flush()
        owner.written.add(Letter(word="gamma", tenant_id="acme"))
        owner.dynamic.append(Letter(word="delta", tenant_id="acme"))
        session.flush()
        session.execute(owner.written.insert().values(tenant_id="acme"), [{"word": "epsilon"}, {"word": "zeta"}])
    with world.session() as session:
        owner = session.get_one(Composed, 1)
        wanted = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]
        assert sorted(owner.words) == sorted(wanted)
        assert sorted(each.word for each in session.scalars(owner.written.select())) == sorted(wanted)
        assert sorted(each.word for each in owner.dynamic) == sorted(wanted)
        with pytest.raises(UnsupportedOperationError, match=r"letters\.word"):
            session.scalars(select(Composed).where(Composed.words == "alpha"))


def test_a_dataclass(world: World) -> None:
    with world.session() as session:
        session.add(AsDataclass(id=1, email="ada@example.com"))
    with world.session() as session:
        found = session.get_one(AsDataclass, 1)
        assert found == AsDataclass(id=1, email="ada@example.com")
        assert "example.com" not in repr(found)


def test_an_imperative_mapping_with_a_key_of_its_own(world: World) -> None:
    with world.session() as session:
        session.add(Imperative("ada@example.com"))
    with world.session() as session:
        found = session.scalars(select(Imperative)).one()
        assert (found.email, found.tenant_id) == ("ada@example.com", "acme")
        assert inspect(Imperative).columns["email"].type.context == "imperatives.mail"


def test_python_defaults_are_sealed(world: World) -> None:
    with world.session() as session:
        session.execute(insert(Defaulted), [{"id": 1}, {"id": 2, "email": "given"}])
        copy = insert(Defaulted).from_select(["id", "tenant_id"], select(Defaulted.id + 10, Defaulted.tenant_id))
        with pytest.raises(UnsupportedOperationError, match=r"defaulted\.email"):
            session.execute(copy)
        session.add(Defaulted(id=3))
        session.flush()
        session.execute(update(Defaulted).where(Defaulted.id == 2).values(email="set"))
        found = session.execute(select(Defaulted.id, Defaulted.email, Defaulted.phone).order_by(Defaulted.id)).all()
        assert found == [
            (1, "default", "called"),
            (2, "set", "updated"),
            (3, "default", "called"),
        ]
        assert all(bytes(each)[0] == 0xFA for each in session.scalars(text("select phone from defaulted")))


def test_values_in_place_are_tracked(world: World) -> None:
    with world.session() as session:
        session.add(Document(id=1, prefs={"theme": "dark"}, tags=["a"], items=[1]))
    with world.session() as session:
        found = session.get_one(Document, 1)
        found.prefs["size"] = 3
        found.tags.append("b")
        found.items[0] = {"deep": None}
        assert session.is_modified(found)
    with world.session() as session:
        found = session.get_one(Document, 1)
        assert (found.prefs, found.tags, found.items) == ({"theme": "dark", "size": 3}, ["a", "b"], [{"deep": None}])
        assert isinstance(found.prefs, MutableDict)
        assert isinstance(found.tags, MutableList)
        assert not session.is_modified(found)


def test_single_table_and_joined_inheritance(world: World) -> None:
    with world.session() as session:
        session.add_all(
            [Animal(id=1, owner="ada"), Cat(id=2, owner="bob", vet="who"), Dog(id=3, owner="eve", chip="007")]
        )
    wanted = [("Animal", "ada"), ("Cat", "bob"), ("Dog", "eve")]
    everything = with_polymorphic(Animal, "*")
    for statement in (
        select(Animal).order_by(Animal.id),
        select(everything).order_by(everything.id),
        select(Animal).options(selectin_polymorphic(Animal, [Cat, Dog])).order_by(Animal.id),
    ):
        with world.session() as session:
            found = session.scalars(statement).all()
            assert [(type(each).__name__, each.owner) for each in found] == wanted
            assert (found[1].vet, found[2].chip) == ("who", "007")
    with world.session() as session:
        assert session.execute(select(Dog.owner, Dog.chip)).one() == ("eve", "007")
        assert session.scalars(select(Cat)).one().vet == "who"
        assert session.execute(select(everything.Dog.chip).where(everything.id == 3)).scalar_one() == "007"
        assert [each.id for each in session.scalars(select(everything).where(everything.Dog.chip.is_not(None)))] == [3]
        session.get_one(Dog, 3).chip = "008"
        session.execute(update(Animal).where(Animal.id == 2).values(owner="new"))
    with world.session() as session:
        assert (session.get_one(Animal, 3).chip, session.get_one(Animal, 2).owner) == ("008", "new")


def test_concrete_inheritance_has_a_context_for_each_table(world: World) -> None:
    with world.session() as session:
        session.add_all([Place(id=1, street="a"), Shop(id=1, street="b", till="c")])
    with world.session() as session:
        assert session.get_one(Place, 1).street == "a"
        shop = session.get_one(Shop, 1)
        assert (shop.street, shop.till) == ("b", "c")
        assert (context(Place.street), context(Shop.street)) == ("places.street", "shops.street")


def test_polymorphic_concrete_inheritance_reads_what_one_table_encrypts(world: World) -> None:
    with world.session() as session:
        session.add_all([Device(id=1), Handset(id=2, number="+44")])
    with world.session() as session:
        found = session.scalars(select(Device).order_by(Device.id)).all()
        assert [(type(each).__name__, getattr(each, "number", None)) for each in found] == [
            ("Device", None),
            ("Handset", "+44"),
        ]


def test_a_union_over_concrete_tables_that_encrypt_the_same_attribute_is_refused(world: World) -> None:
    from sqlalchemy.orm import polymorphic_union

    tables = {"place": Place.__table__, "shop": Shop.__table__}
    with world.session() as session, pytest.raises(UnsupportedOperationError, match=r"(places|shops)\.street"):
        session.execute(select(polymorphic_union(tables, "kind", "p")))


def test_what_a_mapper_adds_is_checked(world: World) -> None:
    with world.session() as session:
        session.add(Ghost(id=1, name="x", other="x"))
        session.flush()
        ghost = session.get_one(Ghost, 1)
        assert ghost.loud == "X"
        for ask in (
            lambda: session.scalars(select(Ghost).where(Ghost.loud == "X")).all(),
            lambda: session.scalars(select(Ghost.loud)).all(),
            lambda: session.scalars(select(Ghost).order_by(Ghost.loud)).all(),
            lambda: ghost.namesakes,
            lambda: session.scalars(select(Ghost).where(Ghost.namesakes.any())).all(),
            lambda: session.scalars(select(Ghost).options(with_expression(Ghost.extra, func.lower(Ghost.name)))).all(),
            lambda: session.query(Ghost).join(Ghost.namesakes.of_type(aliased(Ghost))).all(),
        ):
            with pytest.raises(UnsupportedOperationError, match=r"ghosts\.(name|other)"):
                ask()


def test_a_column_property_over_an_encrypted_column_is_refused_wherever_it_is_read(world: World) -> None:
    change = update(Lowered).where(Lowered.id == 1).values(name="Y")
    with world.session() as session:
        asked = [
            lambda: session.scalars(select(Lowered)).all(),
            lambda: session.scalars(select(Lowered.lower)).all(),
            lambda: session.scalars(insert(Lowered).returning(Lowered), [{"id": 1, "name": "X"}]).one().lower,
            lambda: session.scalars(insert(Lowered).values(id=2, name="X").returning(Lowered)).one().lower,
            lambda: session.scalars(insert(Lowered).values(id=3, name="X").returning(Lowered.lower)).all(),
        ]
        if world.engine.dialect.update_returning:
            asked.append(lambda: session.scalars(change.returning(Lowered)).one().lower)
        for ask in asked:
            with pytest.raises(UnsupportedOperationError, match=r"lowered\.name"):
                ask()


def test_an_sql_expression_as_an_attribute_is_refused_when_it_is_flushed(world: World) -> None:
    for change in (lambda: Ghost(id=2, name=func.lower("X")), lambda: Ghost(id=2, name=Ghost.other)):
        with world.vault.tenant("acme"), world.sessions() as session:
            session.add(change())
            with pytest.raises(UnsupportedOperationError, match=r"ghosts\.name"):
                session.flush()
    with world.session() as session:
        session.add(ghost := Ghost(id=1, name="x"))
        session.flush()
        ghost.name = func.lower("X")
        with pytest.raises(UnsupportedOperationError, match=r"ghosts\.name"):
            session.flush()
        session.rollback()


def test_a_reflected_table_holds_bytes_and_takes_encrypted_columns_over_them(world: World) -> None:
    with world.session() as session:
        session.add(AsDataclass(id=1, email="ada@example.com", age=36))
    plain = Table("dataclasses", MetaData(), autoload_with=world.engine)
    assert plain.c.email.type.python_type is bytes
    typed = Table(
        "dataclasses",
        MetaData(),
        Column("email", EncryptedString()),
        Column("age", EncryptedInteger()),
        autoload_with=world.engine,
    )
    with world.session() as session:
        assert session.scalars(select(plain.c.email)).one()[0] == 0xFA
        assert session.execute(select(typed.c.email, typed.c.age)).one() == ("ada@example.com", 36)
        session.execute(update(typed).values(email="new"))
        assert session.scalars(select(AsDataclass)).one().email == "new"


def test_a_copied_table_keeps_contexts_and_a_renamed_copy_gets_its_own(world: World) -> None:
    with world.session() as session:
        session.add(AsDataclass(id=1, email="ada@example.com"))
    copy = AsDataclass.__table__.to_metadata(MetaData())
    renamed = AsDataclass.__table__.to_metadata(MetaData(), name="copies")
    assert copy.c.email.type.context == "dataclasses.email"
    assert renamed.c.email.type.context == "copies.email"
    assert AsDataclass.__table__.c.email.type.context == "dataclasses.email"
    with world.session() as session:
        assert session.scalars(select(copy.c.email)).one() == "ada@example.com"


def test_an_explicit_context_keeps_old_rows_readable_after_a_rename(world: World) -> None:
    metadata = MetaData()
    before = Table("people", metadata, Column("id", Integer, primary_key=True), Column("mail", EncryptedString()))
    metadata.create_all(world.engine)
    try:
        with world.session() as session:
            session.execute(insert(before).values(id=1, mail="old"))
        with world.engine.begin() as connection:
            connection.exec_driver_sql("alter table people rename to users2")
            connection.exec_driver_sql("alter table users2 rename column mail to email")
        forgetful = Table("users2", MetaData(), Column("email", EncryptedString()))
        after = Table(
            "users2", MetaData(), Column("id", Integer), Column("email", EncryptedString(context="people.mail"))
        )
        with world.session() as session:
            session.execute(insert(after).values(id=2, email="new"))
            assert session.scalars(select(after.c.email).order_by(after.c.id)).all() == ["old", "new"]
        with world.session() as session, pytest.raises(OpenError, match=r"give it context="):
            session.scalars(select(forgetful.c.email)).all()
    finally:
        with world.engine.begin() as connection:
            connection.exec_driver_sql("drop table users2")


def test_statements_that_differ_only_in_the_context_share_no_processor(world: World) -> None:
    with world.session() as session:
        session.add(Ghost(id=1, name="the name", other="the other"))
        session.flush()
        for name, wanted in (("name", "the name"), ("other", "the other")) * 2:
            kind = EncryptedString(context=f"ghosts.{name}")
            raw = text("select name as n, other as o, id from ghosts").columns(**{name[0]: kind, "id": Integer})
            assert session.execute(select(raw.subquery("s").c[name[0]])).scalar_one() == wanted


def test_type_coerce_to_another_context_binds_to_that_one(world: World) -> None:
    with world.session() as session:
        session.add(Ghost(id=1, name="x", other="y"))
        session.flush()
        with pytest.raises(OpenError):
            session.scalars(select(type_coerce(Ghost.name, EncryptedString(context="ghosts.other")))).all()
