"""What a slot of sealed values holds never changes: what is declared otherwise is refused, and never finds nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import String, create_engine, event, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from tests.support.world import World

from pii_vault import BlindIndex, EncryptedString, LastChars, LocalKms, Vault
from pii_vault.blind_index import NOTHING, SlotRecord
from pii_vault.errors import BlindIndexError, IndexNotReadyError, KeyStoreError
from pii_vault.reencryption.indexing import State


def model(**declared: Any) -> Any:
    """One application's model of the table, as it is at some time."""

    class Base(DeclarativeBase):
        pass

    class Customer(Base):
        __tablename__ = "customers"
        id: Mapped[int] = mapped_column(primary_key=True)
        tenant_id: Mapped[str] = mapped_column(String(30))
        email: Mapped[str] = mapped_column(EncryptedString(**declared))

    return Customer


PLAIN = model()
INDEX = model(index=True)
CASELESS = model(index=BlindIndex(normalise=("casefold",)))
LATER_SLOT = model(tokens={"last4": BlindIndex(slot=1, part=LastChars(4))})
BOTH_SLOTS = model(index=True, tokens={"last4": BlindIndex(slot=1, part=LastChars(4))})
MOVED = model(index=BlindIndex(slot=1, normalise=("casefold",)), tokens={"before": BlindIndex(slot=0)})


@pytest.fixture
def world(build_world: Callable[..., World]) -> World:
    return build_world(PLAIN.metadata)


def write(world: World, customer: Any, *emails: str) -> None:
    with world.session() as session:
        session.add_all(customer(email=email) for email in emails)


def found(world: World, customer: Any, condition: Any) -> list[str]:
    with world.session() as session:
        return list(session.scalars(select(customer.email).where(condition).order_by(customer.id)))


def build(world: World, customer: Any) -> list[State]:
    built = world.vault.build_index("acme", metadata=customer.metadata, engine=world.engine)
    return [each.state for each in built.statuses]


def test_a_form_that_changed_before_anybody_searched_is_refused(world: World) -> None:
    write(world, INDEX, "Ada")
    said = r"slot 0 of 'customers\.email' holds tokens made as 'text;whole;128' of the index 'customers\.email'"
    with pytest.raises(BlindIndexError, match=said):
        found(world, CASELESS, CASELESS.email == "ada")
    with pytest.raises(BlindIndexError, match=said):
        write(world, CASELESS, "Bob")
    assert found(world, INDEX, INDEX.email == "Ada") == ["Ada"]


def test_a_form_that_changed_after_the_index_was_dropped_is_refused(world: World) -> None:
    write(world, INDEX, "Ada")
    assert found(world, INDEX, INDEX.email == "Ada") == ["Ada"]
    assert world.vault.drop_index("acme", "customers.email", 0)
    with pytest.raises(BlindIndexError, match="holds tokens made as"):
        found(world, CASELESS, CASELESS.email == "ada")
    with pytest.raises(BlindIndexError, match="holds tokens made as"):
        write(world, CASELESS, "Bob")
    assert build(world, CASELESS) == [State.CHANGED]


def test_what_changed_takes_another_slot_and_both_are_found(world: World) -> None:
    write(world, INDEX, "Ada")
    with pytest.raises(IndexNotReadyError, match="0 of 1"):
        found(world, MOVED, MOVED.email == "ada")
    write(world, MOVED, "Bob")
    assert build(world, MOVED) == [State.READY, State.READY]
    assert found(world, MOVED, MOVED.email == "ADA") == ["Ada"]
    assert found(world, MOVED, MOVED.email.token("before") == "Bob") == ["Bob"]
    with pytest.raises(BlindIndexError, match="would write values without them"):
        write(world, INDEX, "Eve")


def test_a_slot_that_was_left_empty_is_not_searched(world: World) -> None:
    write(world, LATER_SLOT, "ada-1234")
    with pytest.raises(BlindIndexError, match=r"slot 0 of 'customers\.email' holds nothing, and"):
        found(world, BOTH_SLOTS, BOTH_SLOTS.email == "ada-1234")
    write(world, BOTH_SLOTS, "bob-5678")  # writing there harms nobody
    assert build(world, BOTH_SLOTS) == [State.CHANGED, State.READY]
    with pytest.raises(BlindIndexError, match="holds nothing"):
        found(world, BOTH_SLOTS, BOTH_SLOTS.email == "bob-5678")
    last4 = BOTH_SLOTS.email.token("last4")
    assert found(world, BOTH_SLOTS, last4.in_(["1234", "5678"])) == ["ada-1234", "bob-5678"]


def test_a_slot_that_is_given_up_is_not_taken_back(world: World) -> None:
    write(world, BOTH_SLOTS, "ada-1234")
    assert found(world, BOTH_SLOTS, BOTH_SLOTS.email == "ada-1234") == ["ada-1234"]
    with pytest.raises(BlindIndexError, match=r"would write values without them.*index drop acme customers\.email 0"):
        write(world, LATER_SLOT, "bob-5678")
    assert world.vault.drop_index("acme", "customers.email", 0)
    write(world, LATER_SLOT, "bob-5678")
    with pytest.raises(BlindIndexError, match="holds nothing"):
        found(world, BOTH_SLOTS, BOTH_SLOTS.email == "ada-1234")


def test_an_index_that_was_dropped_is_built_again(world: World) -> None:
    write(world, INDEX, "Ada")
    assert build(world, INDEX) == [State.READY]
    world.vault.drop_index("acme", "customers.email", 0)
    write(world, PLAIN, "Bob")
    with pytest.raises(IndexNotReadyError, match="1 of 2"):
        found(world, INDEX, INDEX.email == "Bob")
    assert build(world, INDEX) == [State.READY]
    assert found(world, INDEX, INDEX.email == "Bob") == ["Bob"]


def test_two_processes_with_different_models_do_not_mix_their_tokens(world: World) -> None:
    """Neither has read what the other wrote down: both held the tenant's keys before."""
    other = Vault(world.url, kms=world.kms)
    engine = create_engine(world.url)
    other.attach(engine, tenant_column="tenant_id")
    with other.tenant("acme"), world.vault.tenant("acme"):
        pass
    write(world, INDEX, "Ada")
    with (
        pytest.raises(BlindIndexError, match="holds tokens made as"),
        other.tenant("acme"),
        engine.begin() as connection,
    ):
        connection.execute(CASELESS.__table__.insert().values(tenant_id="acme", email="Bob"))
    engine.dispose()
    other.close()


def test_it_is_written_down_once_for_a_keyset(world: World) -> None:
    said: list[str] = []
    store = world.vault._store._engine
    event.listen(store, "before_cursor_execute", lambda _c, _cursor, sql, *_: said.append(sql))
    for email in ("a", "b", "c"):
        write(world, INDEX, email)
    writes = [sql for sql in said if sql.startswith("INSERT INTO pii_vault_index_slots")]
    assert len(writes) == 1
    world.vault.evict("acme")
    write(world, INDEX, "d")
    assert [sql for sql in said if sql.startswith("INSERT INTO pii_vault_index_slots")] == writes


def test_a_file_that_is_locked_by_the_application_itself_is_written_the_next_time(
    sqlite_url: str, world_on: Callable[..., World]
) -> None:
    world = world_on(sqlite_url, PLAIN.metadata)
    with world.session() as session:
        session.add(PLAIN(id=50, email="locks the file"))
        session.flush()
        session.add(INDEX(id=51, email="Ada"))
        session.flush()
        assert world.vault._store.load("acme").slots == ()
    write(world, INDEX, "Bob")
    assert [each.form for each in world.vault._store.load("acme").slots] == ["text;whole;128"]


def test_a_database_in_memory_has_one_connection_for_both(tmp_path: Any) -> None:
    kms = LocalKms(tmp_path / "kms.json")
    vault = Vault("sqlite://", kms=kms)
    vault.create_all()
    vault.add_tenant("acme", key=kms.create_key())
    customers = INDEX.__table__
    engine = vault._engine
    vault.attach(engine, tenant_column="tenant_id")
    INDEX.metadata.create_all(engine)
    with vault.tenant("acme"):
        with engine.begin() as connection:
            connection.execute(customers.insert().values(tenant_id="acme", email="Ada"))
            connection.execute(customers.insert().values(tenant_id="acme", email="Bob"))
        with engine.connect() as connection:
            assert connection.scalars(select(customers.c.email).where(customers.c.email == "Bob")).all() == ["Bob"]
        with engine.connect() as connection:
            connection.execute(customers.insert().values(tenant_id="acme", email="Eve"))
            connection.rollback()
            assert connection.scalars(select(customers.c.email)).all() == ["Ada", "Bob"]
    vault.close()


def test_a_table_that_was_restored_is_searched_no_longer_once_a_value_without_token_is_met(world: World) -> None:
    write(world, PLAIN, "Ada", "Bob")
    backup = rows(world)
    assert build(world, INDEX) == [State.READY]
    assert found(world, INDEX, INDEX.email == "Bob") == ["Bob"]
    restore(world, backup)
    assert found(world, INDEX, INDEX.email == "Bob") == []  # nobody can know it yet
    assert found(world, INDEX, INDEX.id > 0) == ["Ada", "Bob"]
    with pytest.raises(IndexNotReadyError, match="0 of 2"):
        found(world, INDEX, INDEX.email == "Bob")
    assert [each.ready_at for each in world.vault._store.load("acme").slots] == [None]
    assert build(world, INDEX) == [State.READY]
    assert found(world, INDEX, INDEX.email == "Bob") == ["Bob"]


def rows(world: World) -> list[Any]:
    with world.engine.connect() as connection:
        return list(connection.execute(text("SELECT id, email FROM customers")))


def restore(world: World, backup: list[Any]) -> None:
    with world.engine.begin() as connection:
        for number, sealed in backup:
            change = text("UPDATE customers SET email = :sealed WHERE id = :id")
            connection.execute(change, {"sealed": bytes(sealed), "id": number})


def test_the_key_store_itself_keeps_what_a_slot_holds(world: World) -> None:
    """As when another process was faster, and this one's keyset does not know."""
    write(world, INDEX, "Ada")
    assert build(world, INDEX) == [State.READY]
    store = world.vault._store
    (known,) = store.load("acme").slots
    assert known.ready_at is not None
    for contents in (NOTHING, ("customers.email", "text;casefold/1;whole;128")):
        assert store.declare_slots("acme", "customers.email", [contents]) == [known]
    with pytest.raises(KeyStoreError, match=r"slot 0 of 'customers\.email' holds other tokens"):
        store.set_ready("acme", replace(known, form="text;casefold/1;whole;128"))
    assert store.load("acme").slots == (known,)
    assert world.vault.drop_index("acme", "customers.email", 0)
    assert store.declare_slots("acme", "customers.email", [NOTHING]) == [SlotRecord("customers.email", 0, "", "")]
