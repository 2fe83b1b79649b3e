"""Sessions: rows get the scope's tenant, other tenants' rows are refused, and one transaction serves one tenant."""

import asyncio
import gc
import uuid
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import (
    BigInteger,
    Engine,
    ForeignKey,
    LargeBinary,
    MetaData,
    Uuid,
    bindparam,
    create_engine,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    defer,
    load_only,
    make_transient,
    mapped_column,
    relationship,
    scoped_session,
    sessionmaker,
)
from tests.support.shared_world import emptied, shared_world
from tests.support.urls import async_urls
from tests.support.world import World

from pii_vault import EncryptedString, Vault
from pii_vault.errors import ConfigurationError, ForeignValueError, NoTenantError, ScopeError, TenantMismatchError

Build = Callable[..., World]
MakeAsync = Callable[..., AsyncEngine]


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "people"

    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column("tenant_id")
    name: Mapped[str | None]
    email: Mapped[str | None] = mapped_column(EncryptedString())
    boss_id: Mapped[int | None] = mapped_column(ForeignKey("people.id"))
    boss: Mapped["Person | None"] = relationship(remote_side="Person.id")
    staff: Mapped[list["Person"]] = relationship(back_populates="boss", viewonly=True)


class Party(Base):
    """An encrypted column in a subclass, the tenant column in its base class."""

    __tablename__ = "parties"

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str | None]
    kind: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "party"}


class Company(Party):
    __tablename__ = "companies"

    id: Mapped[int] = mapped_column(ForeignKey("parties.id"), primary_key=True)
    tax_number: Mapped[str | None] = mapped_column(EncryptedString())
    __mapper_args__ = {"polymorphic_identity": "company"}


class Plain(Base):
    __tablename__ = "plain"

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str | None]
    word: Mapped[str | None]


class Loose(Base):
    """Encrypted, but nothing says whose row it is."""

    __tablename__ = "loose"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str | None] = mapped_column(EncryptedString())


people: Any = Person.__table__


def add(world: World, tenant: str, *ids: int) -> None:
    with world.session(tenant) as session:
        session.add_all([Person(id=each, name=tenant, email=f"{each}@{tenant}") for each in ids])


def rows(world: World) -> list[Any]:
    with world.engine.connect() as connection:
        return list(connection.execute(text("SELECT id, tenant_id, email FROM people ORDER BY id")).all())


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def everybody_s_world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with shared_world(request, tmp_path_factory, Base.metadata) as made:
        yield made


@pytest.fixture
def world(everybody_s_world: World) -> Iterator[World]:
    with emptied(everybody_s_world, Base.metadata) as made:
        yield made


# Rows get their tenant.


def test_new_rows_get_the_scope_s_tenant(world: World) -> None:
    with world.vault.tenant("glob"), world.sessions.begin() as session:
        person, company = Person(email="a"), Company(tax_number="b")
        session.add_all([person, company, Person(owner="glob", email="c")])
        session.flush()
        assert (person.owner, company.tenant_id) == ("glob", "glob")
    with world.engine.connect() as connection:
        assert connection.execute(text("SELECT DISTINCT tenant_id FROM people")).all() == [("glob",)]
        assert connection.execute(text("SELECT tenant_id FROM parties")).all() == [("glob",)]


def test_the_tenant_column_may_hold_numbers_or_uuids(build_world: Build) -> None:
    class Other(DeclarativeBase):
        metadata = MetaData()

    class ByNumber(Other):
        __tablename__ = "by_number"
        id: Mapped[int] = mapped_column(primary_key=True)
        tenant_id: Mapped[int] = mapped_column(BigInteger)
        email: Mapped[str] = mapped_column(EncryptedString())

    class ByUuid(Other):
        __tablename__ = "by_uuid"
        id: Mapped[int] = mapped_column(primary_key=True)
        tenant_id: Mapped[uuid.UUID] = mapped_column(Uuid)
        email: Mapped[str] = mapped_column(EncryptedString())

    class ByBytes(Other):
        __tablename__ = "by_bytes"
        id: Mapped[int] = mapped_column(primary_key=True)
        tenant_id: Mapped[bytes] = mapped_column(LargeBinary)
        email: Mapped[str] = mapped_column(EncryptedString())

    world = build_world(Other.metadata)
    name = "6f0f2b0e-8f0a-4b52-9d4e-2f6f3f1f0a11"
    for tenant in ("4711", "007", name, name.upper()):
        world.vault.add_tenant(tenant, key=world.kms.create_key())
    with world.session("4711") as session:
        session.add(ByNumber(email="a"))
        session.add(ByNumber(tenant_id=4711, email="b"))
        session.flush()
        assert session.scalars(select(ByNumber.tenant_id)).all() == [4711, 4711]
        session.execute(insert(ByNumber), [{"tenant_id": 4711, "email": "c"}])
    with world.session(name) as session:
        session.add(ByUuid(email="a"))
        session.flush()
        assert session.scalars(select(ByUuid.tenant_id)).all() == [uuid.UUID(name)]
        session.execute(insert(ByUuid), [{"tenant_id": uuid.UUID(name), "email": "c"}])
        with pytest.raises(TenantMismatchError):
            session.execute(insert(ByUuid), [{"tenant_id": uuid.uuid4(), "email": "c"}])
    # A name that its column cannot give back unchanged is refused, not written as another.
    unfit: list[tuple[str, Any]] = [
        ("acme", ByNumber),
        ("007", ByNumber),
        ("acme", ByUuid),
        (name.upper(), ByUuid),
        ("acme", ByBytes),
    ]
    for tenant, model in unfit:
        with world.vault.tenant(tenant), world.sessions() as session:
            session.add(model(email="a"))
            with pytest.raises(ConfigurationError, match="cannot be stored"):
                session.flush()


def test_models_without_encrypted_columns_need_no_scope_and_are_left_alone(world: World) -> None:
    with world.sessions() as session:
        session.add_all([Plain(id=1, word="x"), Party(id=1)])
        session.flush()
        session.get_one(Plain, 1).word = "y"
        session.execute(insert(Plain), [{"id": 2, "tenant_id": "whose", "word": "z"}])
        session.commit()
        assert session.get_one(Plain, 1).word == "y"
        assert session.get_one(Plain, 1).tenant_id is None
        session.delete(session.get_one(Plain, 2))
        session.commit()
    with world.session("acme") as session:
        session.get_one(Plain, 1).word = "changed"
        session.add(Plain(id=3, tenant_id="glob"))
    with world.session("glob") as session:
        assert session.get_one(Plain, 1).word == "changed"


# Another tenant's rows.


def _new(session: Session) -> None:
    session.add(Person(id=50, owner="acme", email="x"))
    session.flush()


def _dirty(session: Session) -> None:
    session.scalars(select(Person).options(defer(Person.email))).one().email = "x"
    session.flush()


def _dirty_name(session: Session) -> None:
    session.scalars(select(Person).options(defer(Person.email))).one().name = "x"
    session.flush()


def _without_tenant(session: Session) -> None:
    session.scalars(select(Person).options(load_only(Person.id))).one().email = "x"
    session.flush()


def _taken_over(session: Session) -> None:
    person = session.scalars(select(Person).options(load_only(Person.id))).one()
    person.owner, person.email = "glob", "x"
    session.flush()


def _taken_over_knowingly(session: Session) -> None:
    person = session.scalars(select(Person).options(defer(Person.email))).one()
    person.owner, person.email = "glob", "x"
    session.flush()


def _deleted(session: Session) -> None:
    session.delete(session.scalars(select(Person).options(defer(Person.email))).one())
    session.flush()


def _deleted_without_tenant(session: Session) -> None:
    session.delete(session.scalars(select(Person).options(load_only(Person.id))).one())
    session.flush()


def _merged(session: Session) -> None:
    session.merge(Person(id=50, owner="acme", email="x"))
    session.flush()


def _upsert(session: Session) -> Any:
    dialect = session.get_bind().dialect.name
    start: Any = (postgresql_insert if dialect == "postgresql" else sqlite_insert)(people)
    return start.values(id=70, tenant_id="glob", email="x")


ROW = {"id": 50, "tenant_id": "acme", "email": "x"}
OWN = {"id": 51, "tenant_id": "glob", "email": "x"}
MAPPED = {"id": 50, "owner": "acme", "email": "x"}

FOREIGN_WRITES: dict[str, Callable[[Session], Any]] = {
    "a new object": _new,
    "a changed object": _dirty,
    "an object changed in a plain column": _dirty_name,
    "an object loaded without its tenant": _without_tenant,
    "an object taken over unseen": _taken_over,
    "an object taken over": _taken_over_knowingly,
    "a deleted object": _deleted,
    "a deleted object loaded without its tenant": _deleted_without_tenant,
    "a merged object": _merged,
    "Core insert": lambda session: session.execute(insert(people), ROW),
    "values": lambda session: session.execute(insert(people).values(**ROW)),
    "values by position": lambda session: session.execute(insert(people).values((50, "acme", None, "x", None))),
    "values by column": lambda session: session.execute(
        insert(people).values({people.c.id: 50, people.c.tenant_id: "acme", people.c.email: "x"})
    ),
    "values by attribute": lambda session: session.execute(
        insert(Person).values({Person.id: 50, Person.owner: "acme", Person.email: "x"})
    ),
    "values by attribute name": lambda session: session.execute(insert(Person).values(**MAPPED)),
    "several values": lambda session: session.execute(insert(people).values([OWN, ROW])),
    "several values by attribute name": lambda session: session.execute(insert(Person).values([MAPPED])),
    "executemany": lambda session: session.connection().execute(insert(people), [OWN, ROW]),
    "ORM bulk insert": lambda session: session.execute(insert(Person), [{**MAPPED, "owner": "glob", "id": 51}, MAPPED]),
    "ORM bulk insert, returning": lambda session: session.scalars(insert(Person).returning(Person), [MAPPED, MAPPED]),
    "bulk_insert_mappings": lambda session: session.bulk_insert_mappings(Person, [MAPPED]),  # type: ignore[arg-type]
    "bulk_save_objects": lambda session: session.bulk_save_objects([Person(**MAPPED)]),
    "a parameter of another name": lambda session: session.execute(
        insert(people).values(id=50, tenant_id=bindparam("whose"), email="x"), {"whose": "acme"}
    ),
    "parameters of another name": lambda session: session.connection().execute(
        insert(people).values(id=bindparam("i"), tenant_id=bindparam("whose"), email=bindparam("e")),
        [{"i": 51, "whose": "glob", "e": "x"}, {"i": 50, "whose": "acme", "e": "x"}],
    ),
    "a parameter with a value": lambda session: session.execute(
        insert(people).values(id=50, tenant_id=bindparam("whose", "acme"), email="x")
    ),
    "an expression": lambda session: session.execute(
        insert(people).values(id=50, tenant_id=func.lower("ACME"), email="x")
    ),
    "NULL": lambda session: session.execute(insert(people).values(id=50, tenant_id=None, email="x")),
    "a row given away": lambda session: session.execute(update(people).values(tenant_id="acme")),
    "a row given away by attribute": lambda session: session.execute(update(Person).values({Person.owner: "acme"})),
    "bulk update": lambda session: session.execute(update(Person), [{"id": 2, "owner": "acme"}]),
    "an upsert": lambda session: session.execute(
        _upsert(session).on_conflict_do_update(index_elements=["id"], set_={"tenant_id": "acme"})
    ),
}


@pytest.mark.parametrize("via", ["session", "attached engine alone"])
def test_a_row_of_another_tenant_is_refused_before_anything_is_written(world: World, via: str) -> None:
    add(world, "acme", 1)
    before = rows(world)
    for name, write in FOREIGN_WRITES.items():
        # Without the session's hooks only statements can be judged, not objects.
        if via != "session" and write.__name__ != "<lambda>" and name != "a new object":
            continue
        make = world.sessions if via == "session" else sessionmaker(world.engine)
        with world.vault.tenant("glob"), make() as session:
            with pytest.raises(TenantMismatchError) as caught:
                write(session)
            assert "acme" not in str(caught.value), name
            session.rollback()
        assert rows(world) == before, name


def test_an_object_from_elsewhere_cannot_carry_its_row_to_another_tenant(world: World) -> None:
    add(world, "acme", 1)
    before = rows(world)
    with world.vault.tenant("acme"), world.sessions() as session:
        loaded = session.get_one(Person, 1)
        session.expunge(loaded)
        expired = session.get_one(Person, 1)
        session.commit()
        session.expunge(expired)
        copied = session.get_one(Person, 1)
        session.expunge(copied)
        make_transient(copied)
        copied.id = 60
    for person in (loaded, expired, copied):
        with world.vault.tenant("glob"), world.sessions() as session:
            session.add(person)
            person.email = "taken"
            with pytest.raises(TenantMismatchError):
                session.flush()
            session.expunge(person)
    assert rows(world) == before


def test_a_row_s_tenant_cannot_be_changed(world: World) -> None:
    add(world, "acme", 1)
    with world.vault.tenant("acme"), world.sessions() as session:
        person = session.get_one(Person, 1)
        person.owner = "glob"
        with pytest.raises(TenantMismatchError):
            session.flush()
        session.rollback()
        person.owner = "acme"  # without having read it
        person.email = "changed"
        session.commit()
        assert person.email == "changed"


def test_a_tenant_column_in_the_base_class_is_respected(world: World) -> None:
    with world.session("acme") as session:
        session.add(Company(id=1, tax_number="a"))
    with world.vault.tenant("glob"), world.sessions() as session:
        company = session.scalars(select(Company).options(load_only(Company.id, Company.kind))).one()
        company.tax_number = "b"
        with pytest.raises(TenantMismatchError):
            session.flush()
    with world.session("acme") as session:
        company = session.scalars(select(Company).options(load_only(Company.id, Company.kind))).one()
        company.tax_number = "b"
        session.flush()
        assert session.scalars(select(Company.tax_number)).one() == "b"


def test_a_table_without_a_tenant_column_is_kept_apart_by_its_keys(world: World) -> None:
    with world.session("acme") as session:
        session.add(Loose(id=1, email="a"))
    with world.vault.tenant("glob"), world.sessions(expire_on_commit=False) as session:
        session.add(Loose(id=2, email="b"))
        session.flush()
        assert session.get_one(Loose, 2).email == "b"
        with pytest.raises(ForeignValueError):
            session.get(Loose, 1)
        session.commit()
        with world.vault.tenant("acme"):
            mine = session.get_one(Loose, 1)
            session.commit()
        mine.email = "taken"
        with pytest.raises(TenantMismatchError):
            session.flush()
        session.rollback()
        session.delete(mine)
        with pytest.raises(TenantMismatchError):
            session.flush()
    with world.session("acme") as session:
        assert session.get_one(Loose, 1).email == "a"


# One transaction, one tenant.


TOUCHES: dict[str, Callable[[Session, Person], Any]] = {
    "select": lambda session, _: session.scalars(select(Person.id).where(Person.id == 404)).all(),
    "flush": lambda session, _: _add_and_flush(session),
    "get": lambda session, _: session.get(Person, 1),
    "get of a row not loaded": lambda session, _: session.get(Person, 404),
    "get_one": lambda session, _: session.get_one(Person, 1),
    "merge": lambda session, _: session.merge(Person(id=1, name="n")),
    "merge without loading": lambda session, it: session.merge(it, load=False),
    "refresh": lambda session, it: session.refresh(it),
    "refresh of a plain column": lambda session, it: session.refresh(it, ["name"]),
    "a many-to-one": lambda session, it: _other(session).boss,
    "a lazy collection": lambda session, it: it.staff,
    "an expired attribute": lambda session, it: (session.expire(it, ["email"]), it.email),
    "a bulk insert": lambda session, _: session.execute(insert(Person), [{**MAPPED, "owner": "glob"}]),
}


def _add_and_flush(session: Session) -> None:
    session.add(Person(id=50, email="x"))
    session.flush()


def _other(session: Session) -> Person:
    return next(each for each in session if isinstance(each, Person) and each.__dict__.get("id") == 2)


@pytest.mark.parametrize("in_scope", ["glob", None])
def test_a_transaction_of_one_tenant_is_refused_to_another(world: World, in_scope: str | None) -> None:
    with world.session("acme") as session:
        session.add(Person(id=1, email="a"))
        session.flush()
        session.add(Person(id=2, email="b", boss_id=1))
    for name, touch in TOUCHES.items():
        with world.sessions() as session:
            with world.vault.tenant("acme"):
                kept = session.scalars(select(Person).order_by(Person.id)).all()
            if in_scope is None:
                # Statements without encrypted columns need no scope.
                if name not in ("select", "refresh of a plain column"):
                    with pytest.raises(NoTenantError):
                        touch(session, kept[0])
                continue
            with world.vault.tenant(in_scope), pytest.raises(TenantMismatchError):
                touch(session, kept[0])
            with world.vault.tenant("acme"):
                session.expunge_all()
                assert session.get_one(Person, 1).email == "a", name
    assert len(rows(world)) == 2


def test_after_its_transaction_a_session_serves_another_tenant_but_not_the_objects_of_the_first(world: World) -> None:
    add(world, "acme", 1)
    add(world, "glob", 2)
    with world.sessions() as session:
        with world.vault.tenant("acme"):
            first = session.get_one(Person, 1)
            session.add(Person(id=3, boss_id=1, email="c"))
            session.flush()
            third = session.get_one(Person, 3)
            session.commit()
        for use in (
            lambda: session.get(Person, 1),
            lambda: session.get_one(Person, 1),
            lambda: session.merge(Person(id=1, owner="glob")),
            lambda: third.boss,
            lambda: first.email,
            lambda: first.staff,
            lambda: session.refresh(first),
            lambda: session.refresh(first, ["name"]),
        ):
            with world.vault.tenant("glob"), pytest.raises(TenantMismatchError):
                use()
            session.rollback()
        with world.vault.tenant("glob"):
            second = session.get_one(Person, 2)
            assert second.email == "2@glob"
            first.email = "taken"
            with pytest.raises(TenantMismatchError):
                session.flush()
            session.rollback()
            session.delete(first)
            with pytest.raises(TenantMismatchError):
                session.flush()
            session.rollback()
            session.commit()
        with world.vault.tenant("acme"):
            assert session.get_one(Person, 1) is first
            assert first.email == "1@acme"
            assert third.boss is first
            first.email = "changed"
            with pytest.raises(TenantMismatchError):
                session.get(Person, 2)
            session.commit()
            assert first.email == "changed"
            session.commit()
        with world.vault.tenant("glob"):
            assert second.email == "2@glob"


def test_a_refused_look_at_another_tenant_s_object_pins_nothing(world: World) -> None:
    add(world, "acme", 1)
    with world.sessions() as session:
        with world.vault.tenant("acme"):
            kept = session.get_one(Person, 1)
            session.commit()
        with world.vault.tenant("glob"), pytest.raises(TenantMismatchError):
            session.get(Person, 1)
        with world.vault.tenant("acme"):
            assert session.get(Person, 1) is kept
            assert kept.email == "1@acme"


@pytest.mark.parametrize("end", ["commit", "rollback", "close", "reset", "invalidate"])
def test_the_end_of_the_transaction_ends_the_pin(world: World, end: str) -> None:
    add(world, "acme", 1)
    add(world, "glob", 2)
    session = world.sessions()
    for tenant, number in (("acme", 1), ("glob", 2), ("acme", 1)):
        with world.vault.tenant(tenant):
            assert session.get_one(Person, number).email == f"{number}@{tenant}"
            getattr(session, end)()
    session.close()


def test_a_savepoint_does_not_end_the_pin(world: World) -> None:
    add(world, "acme", 1)
    with world.sessions() as session:
        with world.vault.tenant("acme"):
            session.get_one(Person, 1)
            with session.begin_nested():
                session.scalars(select(Person.email)).all()
            session.begin_nested().rollback()
        with world.vault.tenant("glob"), pytest.raises(TenantMismatchError):
            session.scalars(select(Person.name)).all()
        with world.vault.tenant("glob"), pytest.raises(TenantMismatchError):
            session.begin_nested().session.scalars(select(Person.name)).all()


def test_a_failed_flush_leaves_the_session_usable_for_its_tenant(world: World) -> None:
    add(world, "acme", 1)
    with world.vault.tenant("acme"), world.sessions() as session:
        session.add(Person(id=2, owner="glob", email="x"))
        with pytest.raises(TenantMismatchError):
            session.flush()
        session.expunge_all()
        session.add(Person(id=2, email="fine"))
        session.commit()
        assert session.scalars(select(Person.email).order_by(Person.id)).all() == ["1@acme", "fine"]


def test_interleaved_sessions_hold_objects_of_one_identity_for_two_tenants(world: World) -> None:
    second = second_database(world)
    with world.vault.tenant("acme"), world.sessions.begin() as session:
        session.add(Person(id=1, email="acme's"))
    with world.vault.tenant("glob"), second.begin() as session:
        session.add(Person(id=1, email="glob's"))
    with world.sessions() as one, second() as other:
        for _ in range(3):
            with world.vault.tenant("acme"):
                acmes = one.get_one(Person, 1, populate_existing=True)
            with world.vault.tenant("glob"):
                globs = other.get_one(Person, 1, populate_existing=True)
                with pytest.raises(TenantMismatchError):
                    one.get(Person, 1)
            assert (acmes.email, globs.email) == ("acme's", "glob's")


def second_database(world: World) -> sessionmaker[Session]:
    """The same vault's second database, as some applications have one for each tenant."""
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    sessions = sessionmaker(engine)
    world.vault.attach(engine, sessions, tenant_column="tenant_id")
    return sessions


def test_two_schemas_with_the_same_identity_are_not_mixed_up_in_one_session(world: World) -> None:
    if world.engine.dialect.name != "postgresql":
        pytest.skip("schemas are tried on PostgreSQL")
    with world.engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA glob"))
        Base.metadata.create_all(connection.execution_options(schema_translate_map={None: "glob"}))
    apart = world.engine.execution_options(schema_translate_map={None: "glob"})
    add(world, "acme", 1)
    with world.vault.tenant("glob"), Session(apart) as session:
        session.add(Person(id=1, owner="glob", email="glob's"))
        session.commit()
    with world.sessions() as session:
        with world.vault.tenant("acme"):
            kept = session.get_one(Person, 1)
            session.commit()
        session.bind = apart
        with world.vault.tenant("glob"):
            with pytest.raises(TenantMismatchError):
                session.scalars(select(Person)).all()
            session.expunge_all()
            assert session.get_one(Person, 1).email == "glob's"
        assert "email" not in kept.__dict__


# What can be attached.


def exercise(world: World, session: Session) -> None:
    """Use a session as its application would, and see that the hooks are there, once."""
    with world.vault.tenant("acme"):
        session.add(Person(email="ada"))
        session.flush()
        assert session.scalars(select(Person.owner)).all() == ["acme"]
    with world.vault.tenant("glob"), pytest.raises(TenantMismatchError):
        session.scalars(select(Person.id)).all()
    session.rollback()
    for name in ("do_orm_execute", "before_flush", "after_begin", "after_transaction_end"):
        listeners = [
            each for each in getattr(session.dispatch, name) if "_SessionHooks" in getattr(each, "__qualname__", "")
        ]
        assert len(listeners) == 1, name


def test_every_kind_of_session_can_be_attached_and_twice_is_once(world: World) -> None:
    class Own(Session):
        pass

    made = sessionmaker(world.engine, class_=Own)
    scoped = scoped_session(sessionmaker(world.engine))
    scoped_class = scoped_session(lambda: None)
    scoped_class.session_factory = type("Mine", (Session,), {})
    one = Session(world.engine)
    for target, make in (
        (made, made),
        (type("Direct", (Session,), {}), None),
        (scoped, scoped),
        (one, lambda: one),
    ):
        for _ in range(3):
            world.vault.attach(target, tenant_column="tenant_id")
        session = make() if make is not None else target(world.engine)  # type: ignore[operator]
        exercise(world, session)
        session.close()
    scoped.remove()
    # The classes that they were made from belong to everybody and stay as they are.
    with world.vault.tenant("acme"):
        for make in (lambda: Session(world.engine), lambda: Own(world.engine)):
            session = make()
            session.add(Person(email="ada"))
            with pytest.raises(TenantMismatchError):
                session.flush()  # nobody has filled the tenant column
            session.close()


def test_every_kind_of_async_session_can_be_attached_and_twice_is_once(
    world: World, make_async_engine: MakeAsync
) -> None:
    async def run(session: Any) -> None:
        await session.run_sync(lambda sync: exercise(world, sync))
        await session.close()

    for url in async_urls(world.url):
        engine = make_async_engine(url)
        world.vault.attach(engine, tenant_column="tenant_id")

        class Sync(Session):
            pass

        class Own(AsyncSession):
            pass

        class OwnSync(AsyncSession):
            sync_session_class = Sync

        makers: list[Any] = [
            async_sessionmaker(engine),
            async_sessionmaker(engine, class_=Own),
            async_sessionmaker(engine, class_=OwnSync),
            async_sessionmaker(engine, sync_session_class=Sync, expire_on_commit=False),
            async_sessionmaker(engine, sync_session_class=sessionmaker(class_=Sync)),
            async_scoped_session(async_sessionmaker(engine), scopefunc=lambda: 1),
        ]
        for maker in makers:
            for _ in range(3):
                world.vault.attach(maker, tenant_column="tenant_id")
            asyncio.run(run(maker()))
        world.vault.attach(OwnSync, OwnSync, tenant_column="tenant_id")
        asyncio.run(run(OwnSync(engine)))

        async def single(engine: AsyncEngine) -> None:
            session = AsyncSession(engine)
            world.vault.attach(session, session, tenant_column="tenant_id")
            await run(session)

        asyncio.run(single(engine))
        # What was shared is as it was.
        assert not hasattr(Sync, "pii_vault_attachment")
        assert AsyncSession.sync_session_class is Session
        assert Own.sync_session_class is Session


def test_async_sessions_write_and_read_for_their_tenant(world: World, make_async_engine: MakeAsync) -> None:
    add(world, "acme", 1)

    async def work(make: async_sessionmaker[AsyncSession]) -> None:
        async with world.vault.tenant("glob"), make.begin() as session:
            session.add(Person(id=2, email="glob's"))
        async with make() as session:
            async with world.vault.tenant("acme"):
                person = await session.get_one(Person, 1)
                assert person.email == "1@acme"
            async with world.vault.tenant("glob"):
                with pytest.raises(TenantMismatchError):
                    await session.get(Person, 1)
                with pytest.raises(TenantMismatchError):
                    await session.refresh(person)
                await session.rollback()
                expired = await session.scalars(select(Person).options(load_only(Person.id)).where(Person.id == 2))
                expired.one().email = "changed"
                await session.commit()
            with pytest.raises(NoTenantError):
                await session.get(Person, 2)
        async with world.vault.tenant("glob"), make.begin() as session:
            assert await session.scalar(select(Person.email).where(Person.id == 2)) == "changed"
            await session.delete(await session.get_one(Person, 2))

    for url in async_urls(world.url):
        engine = make_async_engine(url)
        make = async_sessionmaker(engine)
        world.vault.attach(engine, make, tenant_column="tenant_id")
        asyncio.run(work(make))


def test_what_cannot_be_attached_is_refused_by_name(world: World) -> None:
    for target in (object(), "engine", None, 5, Person, Base.metadata, scoped_session(lambda: Session(world.engine))):
        with pytest.raises(ConfigurationError, match="cannot be attached"):
            world.vault.attach(target)


def test_nothing_is_attached_to_two_vaults_or_for_two_tenant_columns(
    world: World, make_engine: Callable[..., Engine], make_async_engine: MakeAsync
) -> None:
    other = Vault(world.url, kms=world.kms)
    asynchronous = make_async_engine(async_urls(world.url)[0])
    maker = async_sessionmaker(asynchronous)
    world.vault.attach(maker, asynchronous, tenant_column="tenant_id")
    for target in (world.engine, world.sessions, maker, asynchronous):
        with pytest.raises(ConfigurationError, match="attached already"):
            other.attach(target, tenant_column="tenant_id")
        with pytest.raises(ConfigurationError, match="attached already"):
            world.vault.attach(target, tenant_column="owner_id")
        with pytest.raises(ConfigurationError, match="attached already"):
            world.vault.attach(target)
        world.vault.attach(target, tenant_column="tenant_id")
    other.close()


def test_another_vault_s_scope_writes_nothing(world: World) -> None:
    other = Vault(world.url, kms=world.kms)
    with other.tenant("acme"), world.sessions() as session:
        session.add(Person(email="x"))
        with pytest.raises(ScopeError):
            session.flush()
    other.close()
    assert rows(world) == []


def test_a_session_is_not_kept_alive_by_its_guard(world: World) -> None:
    add(world, "acme", 1)
    gc.disable()
    try:
        session = world.sessions()
        with world.vault.tenant("acme"):
            session.get_one(Person, 1)
            session.rollback()
        gone = weakref.ref(session)
        del session
        assert gone() is None
    finally:
        gc.enable()


def test_a_flush_of_many_objects_takes_time_in_proportion(world: World) -> None:
    """Each object is looked at once: no hook may copy the session's collections for every object."""
    copies = 0
    original = Session.new.fget
    assert original is not None

    class Counting(Session):
        @property
        def new(self) -> Any:
            nonlocal copies
            copies += 1
            return original(self)

    make = sessionmaker(world.engine, class_=Counting)
    world.vault.attach(make, tenant_column="tenant_id")
    with world.vault.tenant("acme"), make.begin() as session:
        session.add_all([Person(email="x") for _ in range(200)])
    assert copies < 10
