"""Every way to write a sealed column stores sealed values only, and reads back what was written."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    bindparam,
    case,
    delete,
    event,
    func,
    insert,
    null,
    select,
    type_coerce,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, aliased
from tests.integration.orm.models import SEALED
from tests.support.world import World

from pii_vault import EncryptedString
from pii_vault.errors import EncodingError, TenantMismatchError, UnsupportedOperationError

User, Team, Address = SEALED.User, SEALED.Team, SEALED.Address
users = User.__table__


def row(number: int, **more: Any) -> dict[str, Any]:
    return {"id": number, "tenant_id": "acme", "name": f"n{number}", "email": f"{number}@new", **more}


def rows(count: int) -> list[dict[str, Any]]:
    return [row(number) for number in range(100, 100 + count)]


def new_emails(world: World) -> dict[int, str | None]:
    with world.session() as session:
        assert_sealed(session)
        found = session.execute(select(User.id, User.email).where(User.id >= 100).order_by(User.id))
        return {number: email for number, email in found}  # noqa: C416


def assert_sealed(session: Session) -> None:
    stored = session.execute(select(*(type_coerce(users.c[name], LargeBinary) for name in ("email", "phone", "age"))))
    cells = [cell for row in stored for cell in row if cell is not None]
    assert cells
    assert all(cell[0] == 0xFA and len(cell) >= 38 for cell in cells)
    assert len(set(cells)) == len(cells)


def upsert(world: World) -> Any:
    return insert_with_on_conflict(world)(User)


def insert_with_on_conflict(world: World) -> Any:
    found = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}.get(world.engine.dialect.name)
    return found or pytest.skip("MariaDB has upserts of its own kind")


def by_add(session: Session, rows: list[dict[str, Any]]) -> None:
    session.add_all(User(**each) for each in rows)


def by_add_one_by_one(session: Session, rows: list[dict[str, Any]]) -> None:
    for each in rows:
        session.add(User(**each))
        session.flush()


def by_merge(session: Session, rows: list[dict[str, Any]]) -> None:
    for each in rows:
        session.merge(User(**each))


def by_orm_insert(session: Session, rows: list[dict[str, Any]]) -> None:
    session.execute(insert(User), rows)


def by_orm_insert_values(session: Session, rows: list[dict[str, Any]]) -> None:
    session.execute(insert(User).values(rows))


def by_orm_insert_with_a_common_value(session: Session, rows: list[dict[str, Any]]) -> None:
    session.execute(insert(User).values(phone="1"), rows)


def by_bulk_save_objects(session: Session, rows: list[dict[str, Any]]) -> None:
    session.bulk_save_objects([User(**each) for each in rows], return_defaults=True)


def by_bulk_insert_mappings(session: Session, rows: list[dict[str, Any]]) -> None:
    session.bulk_insert_mappings(User, rows)


def by_core_insert(session: Session, rows: list[dict[str, Any]]) -> None:
    session.connection().execute(insert(users), rows)


def by_core_insert_of_column_objects(session: Session, rows: list[dict[str, Any]]) -> None:
    for each in rows:
        session.connection().execute(insert(users).values({users.c[key]: value for key, value in each.items()}))


def by_core_insert_of_many_values(session: Session, rows: list[dict[str, Any]]) -> None:
    session.connection().execute(insert(users).values(rows))


def by_core_insert_of_bound_parameters(session: Session, rows: list[dict[str, Any]]) -> None:
    statement = insert(users).values({key: bindparam(f"my_{key}") for key in rows[0]})
    session.connection().execute(statement, [{f"my_{key}": value for key, value in each.items()} for each in rows])


INSERTS = [
    by_add,
    by_add_one_by_one,
    by_merge,
    by_orm_insert,
    by_orm_insert_values,
    by_orm_insert_with_a_common_value,
    by_bulk_save_objects,
    by_bulk_insert_mappings,
    by_core_insert,
    by_core_insert_of_column_objects,
    by_core_insert_of_many_values,
    by_core_insert_of_bound_parameters,
]


@pytest.mark.parametrize("write", INSERTS)
def test_one_row_and_several_are_inserted(orm_world: World, write: Callable[..., None]) -> None:
    for some in (rows(1), rows(4)[1:]):
        with orm_world.session() as session:
            write(session, some)
    assert new_emails(orm_world) == {each["id"]: each["email"] for each in rows(4)}


@pytest.mark.parametrize("write", [by_add, by_orm_insert, by_core_insert, by_bulk_insert_mappings])
def test_a_thousand_rows_are_inserted(orm_world: World, write: Callable[..., None]) -> None:
    with orm_world.session() as session:
        write(session, rows(1000))
    assert new_emails(orm_world) == {each["id"]: each["email"] for each in rows(1000)}


@pytest.mark.parametrize("sort", [False, True])
@pytest.mark.parametrize("what", [lambda: [User], lambda: [User.id, User.email, User.phone]])
def test_inserted_rows_are_returned(orm_world: World, what: Callable[[], list[Any]], sort: bool) -> None:
    some = [{key: each[key] for key in ("tenant_id", "name", "email")} for each in rows(50)]
    with orm_world.session() as session:
        statement = insert(User).returning(*what(), sort_by_parameter_order=sort)
        found = session.execute(statement, some).all()
        emails = [(each[0] if len(each) == 1 else each).email for each in found]
    wanted = [each["email"] for each in some]
    assert emails == wanted if sort else sorted(emails) == sorted(wanted)


def test_a_core_insert_returns_what_it_stored(orm_world: World) -> None:
    statement = insert(users).returning(users.c.email.label("address"), users.c.phone, sort_by_parameter_order=True)
    with orm_world.session() as session:
        found = session.connection().execute(statement, rows(3)).all()
    assert [each.address for each in found] == ["100@new", "101@new", "102@new"]


def test_none_stays_null(orm_world: World) -> None:
    with orm_world.session() as session:
        session.add(User(**row(100, phone=None)))
        session.execute(insert(User), [row(101, phone=None), row(102, phone="")])
        session.execute(insert(User).values(**row(103, phone=null())))
        session.execute(update(User).where(User.id == 1).values(phone=None))
        session.execute(update(User).where(User.id == 3).values(phone=null()))
        found = session.scalars(select(User.id).where(User.phone.is_(None)).order_by(User.id)).all()
    assert found == [1, 2, 3, 4, 100, 101, 103]


def test_an_upsert_takes_the_proposed_value(orm_world: World) -> None:
    statement = upsert(orm_world).values([row(1, name="ada", phone="new"), row(100, phone=None)])
    with orm_world.session() as session:
        session.execute(
            statement.on_conflict_do_update(
                index_elements=[User.id],
                set_={"email": statement.excluded.email, User.phone: statement.excluded.phone, "name": "ada2"},
                where=User.born.is_not(None),
            )
        )
    with orm_world.session() as session:
        assert_sealed(session)
        ada = session.get_one(User, 1)
        assert (ada.name, ada.email, ada.phone) == ("ada2", "1@new", "new")
    assert new_emails(orm_world) == {100: "100@new"}


def test_an_upsert_takes_a_plain_value_or_none(orm_world: World) -> None:
    statement = upsert(orm_world).on_conflict_do_update(
        index_elements=["tenant_id", "name"], set_={"email": "set@new", users.c.age: 7, "phone": None}
    )
    with orm_world.session() as session:
        session.execute(statement, [row(100, name="ada"), row(101)])
    with orm_world.session() as session:
        assert_sealed(session)
        ada = session.get_one(User, 1)
        assert (ada.email, ada.age, ada.phone) == ("set@new", 7, None)


def test_an_upsert_of_many_rows_returns_them(orm_world: World) -> None:
    statement = upsert(orm_world)
    statement = statement.on_conflict_do_update(
        index_elements=["tenant_id", "name"], set_={"email": statement.excluded.email}
    ).returning(User)
    with orm_world.session() as session:
        found = session.scalars(
            statement, [row(100, name="ada"), row(101)], execution_options={"populate_existing": True}
        )
        assert {each.name: each.email for each in found} == {"ada": "100@new", "n101": "101@new"}


def test_an_upsert_that_does_nothing_leaves_the_row(orm_world: World) -> None:
    with orm_world.session() as session:
        session.execute(upsert(orm_world).on_conflict_do_nothing(), [row(100, name="ada"), row(101)])
    assert new_emails(orm_world) == {101: "101@new"}
    with orm_world.session() as session:
        assert session.get_one(User, 1).email == "ada@example.com"


def test_an_upsert_by_a_name_that_is_no_key_is_refused_lest_it_stores_plaintext(orm_world: World) -> None:
    table = Table(
        "keyed", MetaData(), Column("id", Integer, primary_key=True), Column("mail", EncryptedString(), key="m")
    )
    statement = insert_with_on_conflict(orm_world)(table).values(id=1, m="x")
    with orm_world.session() as session, pytest.raises(UnsupportedOperationError, match=r"'keyed\.mail'"):
        session.execute(statement.on_conflict_do_update(index_elements=["id"], set_={"mail": "plaintext"}))


@pytest.mark.parametrize("synchronize", ["auto", "evaluate", "fetch", False])
def test_rows_are_updated_by_plain_columns(orm_world: World, synchronize: Any) -> None:
    with orm_world.session() as session:
        ada, bob = session.get_one(User, 1), session.get_one(User, 2)
        session.execute(
            update(User).where(User.name == "ada").values(email="new", age=None),
            execution_options={"synchronize_session": synchronize},
        )
        if synchronize:
            assert (ada.email, ada.age, bob.email) == ("new", None, "bob@example.com")
        session.expire_all()
        assert (ada.email, ada.age, bob.email) == ("new", None, "bob@example.com")
        assert_sealed(session)


def test_rows_are_updated_and_deleted_where_a_column_is_null(orm_world: World) -> None:
    with orm_world.session() as session:
        bob = session.get_one(User, 2)
        session.execute(update(User).where(User.phone.is_(None)).values({User.email: "none"}))
        assert bob.email == "none"
        session.execute(update(User).values(boss_id=None))  # MariaDB deletes row by row
        session.execute(delete(User).where(User.phone.is_(None)))
        assert session.scalars(select(User.id).order_by(User.id)).all() == [1, 3]


def test_an_update_returns_the_new_values(orm_world: World) -> None:
    if not orm_world.engine.dialect.update_returning:
        pytest.skip("MariaDB has no UPDATE ... RETURNING")
    with orm_world.session() as session:
        columns = update(User).where(User.id < 3).values(phone="new").returning(User.id, User.email, User.phone)
        assert sorted(session.execute(columns).all()) == [(1, "ada@example.com", "new"), (2, "bob@example.com", "new")]
        entities = update(User).where(User.id == 1).values(phone="newer").returning(User)
        assert session.scalars(entities).one().phone == "newer"
        core = update(users).where(users.c.id == 1).values(email="core").returning(users.c.email)
        assert session.connection().execute(core).scalar_one() == "core"


def test_a_row_is_not_given_away_through_an_alias_named_as_the_proposed_row(orm_world: World) -> None:
    other = aliased(User, name="excluded")
    statement = update(User).where(User.id == other.id).values(tenant_id=other.name)
    with orm_world.session() as session, pytest.raises(TenantMismatchError):
        session.execute(statement)


def test_a_delete_returns_what_it_deleted(orm_world: World) -> None:
    with orm_world.session() as session:
        found = session.execute(delete(User).where(User.id == 4).returning(User.email, User.age)).all()
    assert found == [("ada@example.com", -1)]


def test_rows_are_updated_in_order_from_another_table_and_by_executemany(orm_world: World) -> None:
    with orm_world.session() as session:
        session.execute(update(User).where(User.id == 1).ordered_values((User.name, "a"), (User.email, "ordered")))
        session.execute(
            update(User).where(User.id == Address.user_id, Address.zip == "2000", User.id == 1).values(phone="from")
        )
        session.connection().execute(
            update(users).where(users.c.id == bindparam("number")).values(email=bindparam("mail"), phone="many"),
            [{"number": 2, "mail": "two"}, {"number": 3, "mail": "three"}],
        )
    with orm_world.session() as session:
        assert_sealed(session)
        found = session.execute(select(User.email, User.phone).where(User.id < 4).order_by(User.id)).all()
        assert found == [("ordered", "from"), ("two", "many"), ("three", "many")]


def test_rows_are_deleted_by_those_of_another_table(orm_world: World) -> None:
    if orm_world.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has no DELETE ... USING")
    statement = delete(Address).where(Address.user_id == User.id, User.name == "eve")
    with orm_world.session() as session:
        if orm_world.engine.dialect.name == "postgresql":
            returning = statement.returning(Address.city, User.email)
            assert session.execute(returning).all() == [("London", "eve@example.com")]
        else:
            session.execute(statement, execution_options={"is_delete_using": True})
        assert session.scalars(select(Address.id).order_by(Address.id)).all() == [1, 2]


def test_a_plain_column_is_set_by_whether_a_sealed_one_is_null(orm_world: World) -> None:
    with orm_world.session() as session:
        session.execute(update(User).values(name=case((User.phone.is_(None), "none"), else_="some") + "-" + User.name))
        assert set(session.scalars(select(User.name))) == {"some-ada", "none-bob", "some-eve", "none-kim"}


def by_update_of_mappings(session: Session, changes: list[dict[str, Any]]) -> None:
    session.execute(update(User), changes)


def by_bulk_update_mappings(session: Session, changes: list[dict[str, Any]]) -> None:
    session.bulk_update_mappings(User, changes)


def by_bulk_save_of_changed_objects(session: Session, changes: list[dict[str, Any]]) -> None:
    for change in changes:
        user = session.get_one(User, change["id"])
        for key, value in change.items():
            setattr(user, key, value)
        session.bulk_save_objects([user])


def by_flush(session: Session, changes: list[dict[str, Any]]) -> None:
    for change in changes:
        user = session.get_one(User, change["id"])
        for key, value in change.items():
            setattr(user, key, value)


def by_merge_of_objects(session: Session, changes: list[dict[str, Any]]) -> None:
    for change in changes:
        session.merge(User(**change))


def by_query_update(session: Session, changes: list[dict[str, Any]]) -> None:
    for change in changes:
        session.query(User).filter(User.id == change["id"]).update(change)


@pytest.mark.parametrize(
    "way",
    [
        by_update_of_mappings,
        by_bulk_update_mappings,
        by_bulk_save_of_changed_objects,
        by_flush,
        by_merge_of_objects,
        by_query_update,
    ],
)
def test_rows_are_updated_by_primary_key(orm_world: World, way: Callable[..., None]) -> None:
    changes = [{"id": 1, "email": "one", "age": 99}, {"id": 2, "email": "two", "age": None}]
    with orm_world.session() as session:
        way(session, changes)
    with orm_world.session() as session:
        assert_sealed(session)
        found = session.execute(select(User.id, User.email, User.age).where(User.id < 3).order_by(User.id)).all()
    assert found == [(1, "one", 99), (2, "two", None)]


@pytest.mark.parametrize(
    "write",
    [
        lambda session: session.execute(insert(User), [row(100), {**row(101), "email": func.lower("SECRET")}]),
        lambda session: session.execute(insert(users), {**row(101), "email": func.lower("SECRET")}),
        lambda session: session.bulk_insert_mappings(User, [{**row(101), "email": func.lower("SECRET")}]),
        lambda session: session.execute(update(User), [{"id": 1, "email": func.lower("SECRET")}]),
        lambda session: session.execute(
            update(users).where(users.c.id == 1).values(email=bindparam("e")), {"e": User.phone}
        ),
    ],
)
def test_sql_among_the_parameters_is_no_value(orm_world: World, write: Callable[[Session], Any]) -> None:
    with orm_world.vault.tenant("acme"), orm_world.sessions() as session:
        with pytest.raises(EncodingError, match=r"users\.email") as caught:
            write(session)
        assert "SECRET" not in str(caught.value)


def test_savepoints_keep_and_undo(orm_world: World) -> None:
    with orm_world.session() as session:
        ada = session.get_one(User, 1)
        with session.begin_nested():
            ada.email = "kept"
        undone = session.begin_nested()
        ada.email = "undone"
        session.add(User(**row(100)))
        session.flush()
        undone.rollback()
        assert ada.email == "kept"
        session.add(User(**row(101)))
    assert new_emails(orm_world) == {101: "101@new"}
    with orm_world.session() as session:
        assert session.get_one(User, 1).email == "kept"


def test_a_rollback_brings_the_stored_values_back(orm_world: World) -> None:
    with orm_world.vault.tenant("acme"), orm_world.sessions() as session:
        ada = session.get_one(User, 1)
        ada.email = "changed"
        session.add(fresh := User(**row(100)))
        session.flush()
        session.rollback()
        assert (ada.email, fresh.email) == ("ada@example.com", "100@new")
        assert fresh not in session
        ada.email = "changed again"
        session.commit()
        assert ada.email == "changed again"
    assert new_emails(orm_world) == {}


def test_a_failed_flush_leaves_the_objects_as_they_were(orm_world: World) -> None:
    with orm_world.vault.tenant("acme"), orm_world.sessions() as session:
        session.add(fresh := User(**row(100, age="not a number")))
        with pytest.raises(EncodingError, match=r"users\.age"):
            session.flush()
        session.rollback()
        fresh.age = 3
        session.add(fresh)
        session.commit()
    assert new_emails(orm_world) == {100: "100@new"}


def test_refresh_and_expire_read_again(orm_world: World) -> None:
    with orm_world.session() as session:
        ada = session.get_one(User, 1)
        session.connection().execute(update(users).where(users.c.id == 1).values(email="new", phone="new"))
        assert ada.email == "ada@example.com"
        session.refresh(ada, ["email"])
        assert (ada.email, ada.phone) == ("new", "+44 1")
        session.expire(ada, ["phone"])
        assert ada.phone == "new"
        ada.email = "mine"
        session.flush()
        session.refresh(ada, with_for_update=True)
        assert (ada.email, ada.phone) == ("mine", "new")


def test_merge_of_a_detached_object_writes_what_changed(orm_world: World) -> None:
    with orm_world.vault.tenant("acme"), orm_world.sessions() as session:
        ada = session.get_one(User, 1)
    ada.email = "detached"
    with orm_world.session() as session, statements(orm_world) as seen:
        merged = session.merge(ada)
        session.flush()
        assert merged.email == "detached"
    assert sum(each.startswith("UPDATE") for each in seen) == 1


class statements:
    """Collect the statements that are executed meanwhile."""

    def __init__(self, world: World) -> None:
        self._engine, self._seen = world.engine, list[str]()

    def _listen(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        self._seen.append(statement)

    def __enter__(self) -> list[str]:
        event.listen(self._engine, "before_cursor_execute", self._listen)
        return self._seen

    def __exit__(self, *_: object) -> None:
        event.remove(self._engine, "before_cursor_execute", self._listen)


def test_assigning_what_is_there_writes_nothing(orm_world: World) -> None:
    with orm_world.session() as session:
        ada = session.get_one(User, 1)
        for name in ("email", "phone", "age", "born", "prefs", "tags"):
            value = getattr(ada, name)
            setattr(ada, name, type(value)(value) if isinstance(value, list | dict) else value)
        assert not session.is_modified(ada)
        with statements(orm_world) as seen:
            session.flush()
        assert seen == []
        ada.email = "new"
        with statements(orm_world) as seen:
            session.flush()
        assert len(seen) == 1
        assert "email" in seen[0]
        assert "phone" not in seen[0]


def test_an_equal_value_that_is_stored_otherwise_is_written(orm_world: World) -> None:
    with orm_world.session() as session:
        ada = session.get_one(User, 1)
        ada.prefs = {"number": 1}
        session.flush()
        ada.prefs = {"number": True}
        assert session.is_modified(ada)
        session.flush()
        session.expire(ada)
        assert ada.prefs["number"] is True
        ada.age = 36.0
        with pytest.raises(EncodingError, match=r"users\.age"):
            session.flush()
        session.rollback()


def test_two_phase_commit(orm_world: World) -> None:
    with orm_world.engine.connect() as connection:
        if orm_world.engine.dialect.name == "sqlite":
            pytest.skip("SQLite has no two-phase commit")
        on_postgresql = orm_world.engine.dialect.name == "postgresql"
        if on_postgresql and connection.exec_driver_sql("show max_prepared_transactions").scalar_one() == "0":
            pytest.skip("this server has two-phase commit turned off")
    with orm_world.vault.tenant("acme"), Session(orm_world.engine, twophase=True) as session:
        session.add(User(**row(100)))
        session.prepare()
        session.commit()
    assert new_emails(orm_world) == {100: "100@new"}


def test_a_hundred_statements_of_two_tenants_share_compiled_statements_and_no_value(orm_world: World) -> None:
    found: list[tuple[int, Iterable[Any]]] = []
    for number in range(100, 150):
        for tenant in ("acme", "glob"):
            key = number if tenant == "acme" else number + 100
            with orm_world.session(tenant) as session:
                session.execute(insert(User), [{**row(key), "tenant_id": tenant, "email": f"{tenant}{number}"}])
                found.append((key, session.scalars(select(User.email).where(User.id == key)).all()))
                session.execute(update(User).where(User.id == key).values(phone=f"{tenant}{number}"))
    for tenant, keys in (("acme", range(100, 150)), ("glob", range(200, 250))):
        with orm_world.session(tenant) as session:
            stored = session.execute(
                select(User.email, User.phone).where(User.tenant_id == tenant, User.id >= 100).order_by(User.id)
            ).all()
        first = keys[0]
        assert stored == [(f"{tenant}{key - first + 100}",) * 2 for key in keys]
    assert all(len(list(emails)) == 1 for _, emails in found)


def test_a_parameter_that_stands_for_two_columns_is_refused_where_one_is_sealed(orm_world: World) -> None:
    one = bindparam("one")
    statements = [
        insert(users).values({**row(100), "name": one, "email": one}),
        insert(users).values({**row(100), "email": one, "phone": one}),
        update(users).where(users.c.name == one).values(email=one),
    ]
    for statement in statements:
        with orm_world.session() as session, pytest.raises(UnsupportedOperationError, match="a parameter of its own"):
            session.connection().execute(statement, {"one": "ada"})


def test_a_parameter_without_a_type_in_many_values_is_refused(orm_world: World) -> None:
    def statement(kind: Any) -> Any:
        return insert(users).values([row(100), row(101, email=bindparam("its", type_=kind))])

    with orm_world.session() as session, pytest.raises(UnsupportedOperationError, match="a parameter without a type"):
        session.connection().execute(statement(None), {"its": "101@new"})
    with orm_world.session() as session:
        session.connection().execute(statement(users.c.email.type), {"its": "101@new"})
    assert new_emails(orm_world) == {100: "100@new", 101: "101@new"}
