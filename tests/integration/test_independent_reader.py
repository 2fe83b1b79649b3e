"""What an application stored opens, and has its tokens, by the pages under docs/ alone: with the tables and the KMS."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, String, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from tests.support import independent_opener as opener
from tests.support import independent_tokens as tokens
from tests.support.independent_opener import KeyRecord, Kind, Tenant
from tests.support.world import World

from pii_vault import After, BlindIndex, Bucket, EncryptedDate, EncryptedString, LastChars
from pii_vault.kms import KmsKey


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    email: Mapped[str] = mapped_column(
        EncryptedString(
            index=BlindIndex(normalise=("strip", "casefold")),
            tokens={"domain": After("@"), "few": BlindIndex(bits=12, name="shared")},
        )
    )
    phone: Mapped[str] = mapped_column(
        EncryptedString(index=BlindIndex(slot=2), tokens={"last4": BlindIndex(slot=1, name="phone", part=LastChars(4))})
    )
    born: Mapped[date] = mapped_column(EncryptedDate(tokens={"decade": Bucket(years=10)}))
    notes: Mapped[str] = mapped_column(EncryptedString())


# What each place of a column has, by its declaration: an index name and a form, or nothing.
PLACES: dict[str, list[tuple[str, str] | None]] = {
    "email": [
        ("customers.email", "text;strip/1;casefold/1;whole;128"),
        ("customers.email", "text;after(@);128"),
        ("shared", "text;whole;12"),
    ],
    "phone": [None, ("phone", "text;last(4);128"), ("customers.phone", "text;whole;128")],
    "born": [("customers.born", "date;bucket(10y);128")],
    "notes": [],
}
ROW: dict[str, Any] = {"email": " Ada@Example.com", "phone": "555-1234", "born": date(1984, 5, 17), "notes": "called"}


def unwrapped(world: World, engine: Engine) -> tuple[Tenant, dict[str, dict[int, bytes]]]:
    """The tenant and its keys, by purpose and version."""
    with engine.connect() as connection:
        (app_uid,) = connection.execute(text("SELECT uid FROM pii_vault_application")).one()
        uid, keyset_id = connection.execute(
            text("SELECT uid, keyset_id FROM pii_vault_tenants WHERE name = 'acme'")
        ).one()
        tenant = Tenant(bytes(app_uid), bytes(uid), keyset_id)
        keks: dict[int, bytes] = {}
        for generation, arn, blob, commitment in connection.execute(
            text("SELECT generation, kms_key_arn, wrapped, commitment FROM pii_vault_keks WHERE tenant_uid = :uid"),
            {"uid": uid},
        ):
            kek = world.kms.unwrap(KmsKey(arn), bytes(blob), opener.kms_context(tenant, "kek", generation))
            assert opener.kek_commitment(tenant, generation, kek) == bytes(commitment)
            keks[generation] = kek
        found: dict[str, dict[int, bytes]] = {"data": {}, "index": {}}
        for row in connection.execute(
            text(
                "SELECT purpose, version, kek_generation, algorithm, iv, encrypted_key, commitment"
                " FROM pii_vault_keys WHERE tenant_uid = :uid"
            ),
            {"uid": uid},
        ):
            record = KeyRecord(*row[:4], *map(bytes, row[4:]))
            found[record.purpose][record.version] = opener.unwrap(tenant, record, keks[record.kek_generation])
    return tenant, found


@pytest.fixture
def world(build_world: Callable[..., World]) -> World:
    metadata: MetaData = Base.metadata
    return build_world(metadata)


def test_values_open_and_every_place_has_the_token_of_its_declaration(world: World):
    with world.session() as session:
        session.add(Customer(id=1, tenant_id="acme", **ROW))
    tenant, keys = unwrapped(world, world.engine)
    with world.engine.connect() as connection:
        stored = connection.execute(text("SELECT email, phone, born, notes FROM customers")).mappings().one()
    for column, value in ROW.items():
        sealed = bytes(stored[column])
        header = opener.parse(sealed).header
        context = opener.context_id("customers", column)
        opened = opener.open_value(sealed, tenant=tenant, data_keys=keys["data"], context=context)
        assert opener.decode(Kind((opened.codec,)), opened.codec, opened.plaintext) == value
        assert len(header.tokens) == len(PLACES[column])
        assert (header.index_generation == 0) == (not PLACES[column])
        for number, declared in enumerate(PLACES[column]):
            if declared is None:
                assert tokens.place(sealed, number) == bytes(16)
                continue
            name, form = declared
            parsed = tokens.parse_form(form)
            subkey = tokens.index_subkey(keys["index"][header.index_generation], tenant, name, form)
            message = tokens.message_of(parsed, opened.codec, opened.plaintext)
            assert tokens.place(sealed, number) == tokens.token_of(subkey, message, parsed.bits)


def test_text_without_its_part_has_a_token_of_no_message(world: World):
    with world.session() as session:
        for number in (1, 2):
            session.add(Customer(id=number, tenant_id="acme", **{**ROW, "email": "nobody"}))
    with world.engine.connect() as connection:
        stored = [bytes(value) for (value,) in connection.execute(text("SELECT email FROM customers"))]
    for number, shared in ((0, True), (1, False), (2, True)):
        assert (tokens.place(stored[0], number) == tokens.place(stored[1], number)) == shared
