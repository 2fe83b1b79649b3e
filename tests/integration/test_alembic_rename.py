"""A migration that renames an encrypted column, and one that seals values with their tenants' newest keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, ForeignKey, Index, MetaData, String, insert, inspect, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from tests.support.alembic_app import AlembicApp
from tests.support.world import World

from pii_vault import EncryptedString, LastChars
from pii_vault.envelope import parse
from pii_vault.errors import BackfillError, ConfigurationError, KmsDeniedError
from pii_vault.migrations import include_object

pytestmark = [
    pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index"),
    pytest.mark.filterwarnings("ignore:autogenerate skipping metadata-specified expression-based index"),
]

TOKENS = {"last4": LastChars(4)}


def models(name: str, kind: EncryptedString) -> MetaData:
    class Base(DeclarativeBase):
        pass

    body: dict[str, Any] = {
        "__tablename__": "customers",
        "__annotations__": {"id": Mapped[int], "tenant_id": Mapped[str], "invited_by": Mapped[int | None]},
        "id": mapped_column(primary_key=True),
        "tenant_id": mapped_column(String(50)),
        "invited_by": mapped_column(ForeignKey("customers.id")),
        name: mapped_column(kind, nullable=False),
    }
    model: Any = type("Customer", (Base,), body)
    Index("ix_own", model.tenant_id, getattr(model, name).blind_index)
    return Base.metadata


OLD = models("email", EncryptedString(index=True, tokens=TOKENS))
KEPT = models("mail", EncryptedString(index=True, tokens=TOKENS, context="customers.email"))
NEW = models("mail", EncryptedString(index=True, tokens=TOKENS))

IMPORTS = "from pii_vault import EncryptedString, LastChars\n"
KIND = "EncryptedString(index=True, tokens={{'last4': LastChars(4)}}"
RENAME = "op.rename_encrypted_column('customers', '{}', '{}', " + KIND
ROWS = [
    {"id": n, "tenant_id": ("acme", "glob")[n % 2], "email": f"p{n}@example.com", "invited_by": None}
    for n in range(1, 13)
]


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def world(request: pytest.FixtureRequest, world_on: Callable[..., World], tmp_path: Path) -> World:
    names = {"sqlite": "sqlite_url", "postgresql": "postgres_url", "mariadb": "mariadb_url"}
    # No key store is on MariaDB.
    keys = {"key_store_url": f"sqlite:///{tmp_path / 'keys.sqlite3'}"} if request.param == "mariadb" else {}
    made = world_on(request.getfixturevalue(names[request.param]), OLD, **keys)
    for row in ROWS:
        with made.vault.tenant(str(row["tenant_id"])), made.engine.begin() as connection:
            connection.execute(insert(OLD.tables["customers"]), [row])
    return made


@pytest.fixture
def app(world: World, make_engine: Callable[..., Engine], tmp_path: Path) -> AlembicApp:
    engine = make_engine(world.url)
    world.vault.attach(engine, tenant_column="tenant_id")
    return AlembicApp(tmp_path / "app", engine, {"pii_vault": world.vault})


def read(world: World, metadata: MetaData, name: str) -> dict[int, str]:
    table, found = metadata.tables["customers"], {}
    for tenant in ("acme", "glob"):
        with world.vault.tenant(tenant), world.engine.connect() as connection:
            query = select(table.c.id, table.c[name]).where(table.c.tenant_id == tenant)
            found |= {row[0]: row[1] for row in connection.execute(query)}
    return found


EXPECTED = {row["id"]: row["email"] for row in ROWS}


def finds(world: World, metadata: MetaData, name: str) -> list[int]:
    table = metadata.tables["customers"]
    with world.vault.tenant("acme"), world.engine.connect() as connection:
        return list(connection.scalars(select(table.c.id).where(table.c[name] == "p2@example.com")))


def stored(world: World, name: str) -> dict[int, bytes]:
    with world.engine.connect() as connection:
        rows = connection.execute(text(f"SELECT id, {name} FROM customers"))
        return {row[0]: bytes(row[1]) for row in rows}


def differences(engine: Engine, metadata: MetaData) -> list[Any]:
    with engine.connect() as connection:
        options = {"include_object": include_object}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))


def test_a_renamed_column_keeps_its_values_as_they_are(world: World, app: AlembicApp) -> None:
    up = f"{RENAME.format('email', 'mail')}, context='customers.email'), keep_context=True)"
    down = f"{RENAME.format('mail', 'email')}), keep_context=True, old_context='customers.email')"
    app.write_revision(f"{IMPORTS}def upgrade():\n    {up}\n    {up}\ndef downgrade():\n    {down}\n")
    before = stored(world, "email")
    app.upgrade(KEPT)
    assert stored(world, "mail") == before
    assert read(world, KEPT, "mail") == EXPECTED
    assert finds(world, KEPT, "mail") == [2]
    app.check(KEPT)
    app.downgrade(OLD)
    assert stored(world, "email") == before
    assert finds(world, OLD, "email") == [2]
    assert differences(world.engine, OLD) == []


def test_a_renamed_column_can_be_sealed_for_its_new_name(world: World, app: AlembicApp) -> None:
    drops = "['ix_customers_{0}_blind', 'ix_customers_{0}_last4', 'ix_own']"

    def step(old: str, new: str) -> str:
        if world.engine.dialect.name == "mariadb":  # with the generated columns
            lines = [
                f"op.drop_blind_index('ix_customers_{old}_blind', 'customers', '{old}', slot=0, if_exists=True)",
                f"op.drop_blind_index('ix_own', 'customers', '{old}', slot=0, if_exists=True)",
                f"op.drop_blind_index('ix_customers_{old}_last4', 'customers', '{old}', slot=1, if_exists=True)",
            ]
        else:
            lines = []
        lines.append(f"{RENAME.format(old, new)}), keep_context=False, drops={drops.format(old)})")
        lines += [
            f"op.create_blind_index('ix_customers_{new}_blind', 'customers', '{new}', slot=0)",
            f"op.create_blind_index('ix_customers_{new}_last4', 'customers', '{new}', slot=1)",
            f"op.create_blind_index('ix_own', 'customers', '{new}', slot=0, columns_before=['tenant_id'])",
        ]
        return "\n    ".join(lines)

    steps = f"def upgrade():\n    {step('email', 'mail')}\ndef downgrade():\n    {step('mail', 'email')}\n"
    app.write_revision(IMPORTS + steps)
    before = stored(world, "email")
    app.upgrade(NEW)
    assert not set(stored(world, "mail").values()) & set(before.values())
    assert read(world, NEW, "mail") == EXPECTED
    assert finds(world, NEW, "mail") == [2]
    assert {each["name"] for each in inspect(world.engine).get_columns("customers") if not each.get("computed")} == {
        "id",
        "tenant_id",
        "invited_by",
        "mail",
    }
    app.check(NEW)
    app.downgrade(OLD)
    assert read(world, OLD, "email") == EXPECTED
    assert finds(world, OLD, "email") == [2]
    assert differences(world.engine, OLD) == []


def test_what_is_chosen_and_what_the_type_says_have_to_agree(world: World, app: AlembicApp) -> None:
    for keep, more, message in (
        (True, "", r"the values stay bound to 'customers\.email', .*context='customers\.email'"),
        (False, ", context='customers.email'", "there is nothing to seal anew"),
    ):
        rename = f"{RENAME.format('email', 'mail')}{more}), keep_context={keep})"
        app.write_revision(f"{IMPORTS}def upgrade():\n    {rename}\n")
        with pytest.raises(ConfigurationError, match=message):
            app.upgrade(KEPT)
        next((app.folder / "versions").glob("*.py")).unlink()
    assert read(world, OLD, "email") == EXPECTED
    app.write_revision(f"{IMPORTS}def upgrade():\n    {RENAME.format('email', 'mail')}))\n")
    with pytest.raises(TypeError, match="keep_context"):
        app.upgrade(KEPT)


def test_a_column_that_is_not_there_is_not_renamed(world: World, app: AlembicApp) -> None:
    for names, message in ((("phone", "fax"), "neither of the columns"), (("tenant_id", "email"), "both columns")):
        for keep, more in ((True, f", context='customers.{names[0]}'"), (False, "")):
            rename = f"{RENAME.format(*names)}{more}), keep_context={keep})"
            app.write_revision(f"{IMPORTS}def upgrade():\n    {rename}\n")
            with pytest.raises(ConfigurationError, match=message):
                app.upgrade(KEPT)
            next((app.folder / "versions").glob("*.py")).unlink()


def test_a_rename_is_sql_where_no_value_is_sealed_anew(world: World, app: AlembicApp) -> None:
    up = f"{RENAME.format('email', 'mail')}, context='customers.email'), keep_context=True)"
    app.write_revision(f"{IMPORTS}def upgrade():\n    {up}\n")
    script = app.sql(KEPT)
    with world.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in script.split(";\n"):
            if sql := "\n".join(line for line in statement.splitlines() if not line.startswith("--")).strip():
                connection.exec_driver_sql(sql)
    assert finds(world, KEPT, "mail") == [2]
    assert differences(world.engine, KEPT) == []
    next((app.folder / "versions").glob("*.py")).unlink()
    app.write_revision(f"{IMPORTS}def upgrade():\n    {RENAME.format('mail', 'email')}), keep_context=False)\n")
    with pytest.raises(ConfigurationError, match="cannot be written as SQL"):
        app.sql(KEPT)


def versions(world: World, tenant: str) -> set[int]:
    keyset = world.vault.tenant(tenant)
    with keyset as scope:
        mine = scope.renew().identity.keyset_id
    headers = [parse(value) for value in stored(world, "email").values()]
    return {header.version for header in headers if header.keyset_id == mine}


def test_values_are_sealed_with_the_newest_keys(world: World, app: AlembicApp) -> None:
    for tenant in ("acme", "glob"):
        world.vault.rotate(tenant)
    app.write("op.reencrypt('customers', tenants=['acme'])")
    app.upgrade(OLD)
    assert (versions(world, "acme"), versions(world, "glob")) == ({2}, {1})
    app.write("op.reencrypt('customers')")
    app.upgrade(OLD)
    assert (versions(world, "acme"), versions(world, "glob")) == ({2}, {2})
    assert read(world, OLD, "email") == EXPECTED
    assert finds(world, OLD, "email") == [2]


def test_a_kms_that_refuses_stops_a_reencryption_before_anything_is_changed(world: World, app: AlembicApp) -> None:
    for tenant in ("acme", "glob"):
        world.vault.rotate(tenant)
    world.kms.disable_key(world.keys["glob"])
    world.vault.evict("glob")
    app.write("op.create_table('made', sa.Column('id', sa.Integer), if_not_exists=True)\nop.reencrypt('customers')")
    before = stored(world, "email")
    with pytest.raises(KmsDeniedError, match="tenant 'glob': "):
        app.upgrade(OLD)
    assert stored(world, "email") == before
    assert not inspect(world.engine).has_table("made") or world.engine.dialect.name != "postgresql"


def test_a_value_that_cannot_be_sealed_anew_is_named(world: World, app: AlembicApp) -> None:
    world.vault.rotate("acme")
    with world.engine.begin() as connection:
        sealed = stored(world, "email")[2]
        broken = sealed[:-1] + bytes((sealed[-1] ^ 1,))
        connection.execute(text("UPDATE customers SET email = :broken WHERE id = 2"), {"broken": broken})
    app.write("op.reencrypt('customers')")
    with pytest.raises(BackfillError, match=r"tenant 'acme', customers\.email of row 2: "):
        app.upgrade(OLD)


def test_a_reencryption_names_tables_that_are_there(world: World, app: AlembicApp) -> None:
    app.write("op.reencrypt('people')")
    with pytest.raises(ConfigurationError, match=r"no table 'people' with encrypted columns"):
        app.upgrade(OLD)
    with pytest.raises(ConfigurationError, match=r"cannot be written as SQL .*pii-vault reencrypt"):
        app.sql(OLD)
