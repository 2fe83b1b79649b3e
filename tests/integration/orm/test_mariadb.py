"""What MariaDB does in its own way: upserts, updates of several tables, values that pymysql writes into the SQL."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, func, inspect, literal, select, text, update
from sqlalchemy.dialects.mysql import insert, match
from sqlalchemy.orm import aliased
from tests.integration.orm.models import SEALED
from tests.integration.orm.test_refused_statements import NAMES_THE_COLUMN
from tests.integration.orm.test_writes import assert_sealed, new_emails, row
from tests.support.world import World

from pii_vault import EncryptedString
from pii_vault.errors import OpenError, TenantMismatchError, UnsupportedOperationError

User, Team, Address = SEALED.User, SEALED.Team, SEALED.Address
users = User.__table__

pytestmark = pytest.mark.parametrize("_shared_world", ["mariadb"], indirect=True, scope="session")


def test_a_value_may_be_longer_than_64_kib(orm_world: World) -> None:
    kinds = {column["name"]: str(column["type"]) for column in inspect(orm_world.engine).get_columns("users")}
    assert {kinds[name] for name in ("email", "phone", "age", "born", "prefs", "tags")} == {"LONGBLOB"}


def test_an_upsert_takes_the_proposed_value(orm_world: World) -> None:
    statement = insert(User).values([row(1, name="ada", phone="new"), row(100, phone=None)])
    with orm_world.session() as session:
        session.execute(
            statement.on_duplicate_key_update(
                {"email": statement.inserted.email, "phone": statement.inserted.phone, "name": "ada2"}
            )
        )
    with orm_world.session() as session:
        assert_sealed(session)
        ada = session.get_one(User, 1)
        assert (ada.name, ada.email, ada.phone) == ("ada2", "1@new", "new")
    assert new_emails(orm_world) == {100: "100@new"}


def test_an_upsert_of_many_rows_takes_the_proposed_values(orm_world: World) -> None:
    statement = insert(users)
    statement = statement.on_duplicate_key_update(
        [("phone", statement.inserted.phone), ("age", statement.inserted.age)]
    )
    changes = [row(100, name="ada", phone="1", age=1), row(101, phone="2", age=None)]
    changes += [row(102, name="bob", phone="3", age=3)]
    with orm_world.session() as session:
        session.connection().execute(statement, changes)
    with orm_world.session() as session:
        found = session.execute(select(User.name, User.phone, User.age).order_by(User.name)).all()
        assert found[:2] == [("ada", "1", 1), ("bob", "3", 3)]
        assert found[-1] == ("n101", "2", None)


def test_an_upsert_takes_a_plain_value_or_none(orm_world: World) -> None:
    statement = insert(User).values(row(100, name="ada"))
    statement = statement.on_duplicate_key_update({users.c.email: "set@new", "age": 7, "phone": None})
    with orm_world.session() as session:
        session.execute(statement)
    with orm_world.session() as session:
        assert_sealed(session)
        ada = session.get_one(User, 1)
        assert (ada.email, ada.age, ada.phone) == ("set@new", 7, None)


def test_an_ignored_insert_leaves_the_row(orm_world: World) -> None:
    with orm_world.session() as session:
        session.execute(insert(User).prefix_with("IGNORE"), [row(100, name="ada"), row(101)])
    assert new_emails(orm_world) == {101: "101@new"}
    with orm_world.session() as session:
        assert session.get_one(User, 1).email == "ada@example.com"


NEW = row(100)
other = aliased(User, name="inserted")

REFUSED: dict[str, Callable[[Any], Any]] = {
    "an expression": lambda upsert: upsert.on_duplicate_key_update(email=func.lower("X")),
    "a literal of another type": lambda upsert: upsert.on_duplicate_key_update(email=literal("x", String)),
    "another column": lambda upsert: upsert.on_duplicate_key_update(email=User.phone),
    "by column object": lambda upsert: upsert.on_duplicate_key_update({users.c.email: func.lower("X")}),
    "in order": lambda upsert: upsert.on_duplicate_key_update([("name", "x"), ("email", func.lower("X"))]),
    "another column of the proposed row": lambda upsert: upsert.on_duplicate_key_update(email=upsert.inserted.phone),
    "an expression of the proposed row": lambda upsert: upsert.on_duplicate_key_update(
        email=func.lower(upsert.inserted.email)
    ),
    "a plain column to the proposed value": lambda upsert: upsert.on_duplicate_key_update(name=upsert.inserted.email),
    "an alias named as the proposed row": lambda upsert: upsert.on_duplicate_key_update(email=other.email),
    "a plain column to an expression": lambda upsert: upsert.on_duplicate_key_update(name=func.hex(User.email)),
    "VALUES() in words": lambda upsert: upsert.on_duplicate_key_update(email=func.values(users.c.email)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_upsert_is_refused(orm_world: World, name: str) -> None:
    with orm_world.session() as session, pytest.raises(UnsupportedOperationError, match=NAMES_THE_COLUMN):
        session.execute(REFUSED[name](insert(User).values(**NEW, phone="y")))


def test_an_upsert_by_a_name_that_is_no_key_is_refused_lest_it_stores_plaintext(orm_world: World) -> None:
    table = Table(
        "keyed", MetaData(), Column("id", Integer, primary_key=True), Column("mail", EncryptedString(), key="m")
    )
    statement = insert(table).values(id=1, m="x").on_duplicate_key_update(mail="plaintext")
    with orm_world.session() as session, pytest.raises(UnsupportedOperationError, match=r"'keyed\.mail'"):
        session.execute(statement)


def test_an_upsert_gives_no_row_away(orm_world: World) -> None:
    for change in ({"tenant_id": "glob"}, {users.c.tenant_id: "glob"}, {"tenant_id": other.name}):
        with orm_world.session() as session, pytest.raises(TenantMismatchError):
            session.execute(insert(User).values(NEW).on_duplicate_key_update(change))
    statement = insert(User).values(row(100, name="ada"))
    with orm_world.session() as session:
        session.execute(statement.on_duplicate_key_update(tenant_id=statement.inserted.tenant_id))


def test_an_update_of_two_tables_seals_the_first_ones_columns(orm_world: World) -> None:
    of_both = update(users).where(users.c.id == Address.user_id, Address.zip == "2000")
    with orm_world.session() as session:
        session.connection().execute(of_both.values({users.c.email: "new", Address.__table__.c.zip: "3000"}))
    with orm_world.session() as session:
        assert_sealed(session)
        assert session.get_one(User, 1).email == "new"
        assert session.get_one(Address, 2).zip == "3000"
        with pytest.raises(UnsupportedOperationError, match=NAMES_THE_COLUMN):
            session.connection().execute(of_both.values({users.c.name: "x", Address.__table__.c.city: "new"}))


def test_a_full_text_search_is_refused(orm_world: World) -> None:
    with orm_world.session() as session, pytest.raises(UnsupportedOperationError, match=NAMES_THE_COLUMN):
        session.execute(select(User.id).where(match(User.email, against="ada")))


def test_no_byte_of_a_sealed_value_is_lost_on_its_way_through_the_sql(orm_world: World) -> None:
    # pymysql writes values into the statement: quotes, backslashes, percent signs and NUL are in there by chance.
    emails = {number: f"{number}@new" for number in range(100, 1100)}
    with orm_world.session() as session:
        session.execute(insert(User), [row(number) for number in emails])
    assert new_emails(orm_world) == emails


def test_a_value_in_another_row_of_its_column_opens_but_in_another_column_does_not(orm_world: World) -> None:
    with orm_world.session() as session:
        session.execute(text("update users set phone = email where id = 1"))
        with pytest.raises(OpenError):
            session.scalars(select(User.phone).where(User.id == 1)).all()
