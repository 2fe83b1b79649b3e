"""What autogenerate writes when a column of the models becomes an encrypted one, or a plain one again."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import render_op
from alembic.runtime.migration import MigrationContext
from sqlalchemy import (
    Boolean,
    Date,
    Engine,
    Enum,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    String,
    UniqueConstraint,
    insert,
    select,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from tests.support.alembic_app import AlembicApp
from tests.support.world import World

from pii_vault import (
    After,
    BlindIndex,
    Bucket,
    EncryptedArray,
    EncryptedBoolean,
    EncryptedDate,
    EncryptedEnum,
    EncryptedNumeric,
    EncryptedString,
    LastChars,
)
from pii_vault.errors import ConfigurationError
from pii_vault.migrations import (
    DecryptColumnOp,
    EncryptColumnOp,
    ReencryptOp,
    RenameEncryptedColumnOp,
    include_object,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index"),
    pytest.mark.filterwarnings("ignore:autogenerate skipping metadata-specified expression-based index"),
]


def models(*arguments: Any, email: Any = None, **columns: Any) -> MetaData:
    """Return an application's tables: customers with these columns."""

    class Base(DeclarativeBase):
        pass

    body: dict[str, Any] = {
        "__tablename__": "customers",
        "__table_args__": arguments,
        "id": mapped_column(primary_key=True),
        "tenant_id": mapped_column(String(50)),
        "__annotations__": {"id": Mapped[int], "tenant_id": Mapped[str]},
        "email": email if email is not None else mapped_column(String(100)),
        **columns,
    }
    type("Customer", (Base,), body)
    return Base.metadata


def plain() -> MetaData:
    return models(
        email=mapped_column(String(100), nullable=False, index=True),
        number=mapped_column(Numeric(10, 2)),
        flag=mapped_column(Boolean),
        born=mapped_column(Date),
        safe=mapped_column(Enum(uuid.SafeUUID)),
        other=mapped_column(Integer),
    )


EMAIL = EncryptedString(index=BlindIndex(unique=True, normalise=("casefold",)), tokens={"domain": After("@")})


def sealed() -> MetaData:
    return models(
        email=mapped_column(EMAIL, nullable=False),
        number=mapped_column(EncryptedNumeric()),
        flag=mapped_column(EncryptedBoolean()),
        born=mapped_column(EncryptedDate(tokens={"decade": Bucket(years=10)})),
        safe=mapped_column(EncryptedEnum(uuid.SafeUUID)),
        other=mapped_column(Integer),
    )


ROWS = [
    {
        "id": n,
        "tenant_id": ("acme", "glob")[n % 2],
        "email": f"P{n}@example.com",
        "number": Decimal("1.50"),
        "flag": n % 2 == 0,
        "born": date(1980, 1, n + 1),
        "safe": uuid.SafeUUID.unsafe,
        "other": n,
    }
    for n in range(1, 7)
]


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def world(request: pytest.FixtureRequest, world_on: Callable[..., World], tmp_path: Path) -> World:
    names = {"sqlite": "sqlite_url", "postgresql": "postgres_url", "mariadb": "mariadb_url"}
    # No key store is on MariaDB.
    keys = {"key_store_url": f"sqlite:///{tmp_path / 'keys.sqlite3'}"} if request.param == "mariadb" else {}
    return world_on(request.getfixturevalue(names[request.param]), **keys)


@pytest.fixture
def app(world: World, make_engine: Callable[..., Engine], tmp_path: Path) -> AlembicApp:
    """An environment that names the vault, and whose engine is attached to it."""
    engine = make_engine(world.url)
    world.vault.attach(engine, tenant_column="tenant_id")
    return AlembicApp(tmp_path / "app", engine, {"pii_vault": world.vault})


def body(revision: str, function: str = "upgrade") -> str:
    return re.search(rf"def {function}\(\).*?\n(.*?)(?=\ndef |\Z)", revision, re.DOTALL)[1]  # type: ignore[index]


def differences(engine: Engine, metadata: MetaData) -> list[Any]:
    with engine.connect() as connection:
        options = {"include_object": include_object}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))


def fill(world: World, metadata: MetaData) -> None:
    with world.engine.begin() as connection:
        connection.execute(insert(metadata.tables["customers"]), ROWS)


def read(world: World, metadata: MetaData) -> list[dict[str, Any]]:
    table = metadata.tables["customers"]
    found: list[dict[str, Any]] = []
    for tenant in ("acme", "glob"):
        with world.vault.tenant(tenant), world.engine.connect() as connection:
            rows = connection.execute(select(table).where(table.c.tenant_id == tenant))
            found += [dict(row._mapping) for row in rows]
    return sorted(found, key=lambda row: row["id"])


@pytest.mark.parametrize("batch", [False, True])
def test_a_column_that_becomes_encrypted_is_sealed_and_nothing_differs_afterwards(
    world: World, app: AlembicApp, batch: bool
) -> None:
    app.options["render_as_batch"] = batch
    app.autogenerate(plain())
    fill(world, plain())
    revision = app.autogenerate(sealed())
    up, down = body(revision), body(revision, "downgrade")
    for word in ("alter_column", "add_column", "drop_column", "op.drop_index"):
        assert word not in up + down
    assert (
        "op.encrypt_column('customers', 'email', pii_vault.EncryptedString(index=pii_vault.BlindIndex(unique=True, "
        "normalise=('casefold',)), tokens={'domain': pii_vault.After(separator='@')}), existing_type="
    ) in up
    assert "tenant_column='tenant_id', drops=['ix_customers_email'])" in up
    assert "pii_vault.EncryptedEnum(enum_class=uuid.SafeUUID)" in up
    assert "import uuid\n" in revision
    assert up.count("op.create_blind_index(") == up.count("if_not_exists=True)") == 3
    assert "pii_vault.EncryptedDate(tokens={'decade': pii_vault.Bucket(years=10)})" in up
    assert "op.decrypt_column('customers', 'email', pii_vault.EncryptedString(" in down
    assert "create_index('ix_customers_email', 'customers', ['email']" in down.replace("op.f(", "").replace("'),", "',")
    for secret in (*world.keys.values(), world.url, "LocalKms", "kms.json"):
        assert secret not in revision
    app.check(sealed())
    assert differences(world.engine, sealed()) == []
    assert read(world, sealed()) == ROWS
    table = sealed().tables["customers"]
    with world.vault.tenant("acme"), world.engine.connect() as connection:
        found = connection.execute(select(table.c.id).where(table.c.email == "p2@EXAMPLE.com")).scalars().all()
        assert found == [2]
    app.downgrade(plain(), "-1")
    assert read(world, plain()) == ROWS
    assert differences(world.engine, plain()) == []
    app.upgrade(sealed())
    assert read(world, sealed()) == ROWS
    app.check(sealed())


def test_a_column_that_becomes_plain_is_opened_and_nothing_differs_afterwards(world: World, app: AlembicApp) -> None:
    app.autogenerate(sealed())
    with world.engine.begin() as connection:
        for row in ROWS:
            with world.vault.tenant(str(row["tenant_id"])):
                connection.execute(insert(sealed().tables["customers"]), [row])
    revision = app.autogenerate(plain())
    up, down = body(revision), body(revision, "downgrade")
    for word in ("alter_column", "add_column", "drop_column", "op.drop_index"):
        assert word not in up + down
    assert "op.decrypt_column('customers', 'email', pii_vault.EncryptedString(), sa.String(length=100)" in up
    assert "op.drop_blind_index(" in up
    assert "if_exists=True" in up
    assert "# The values had 2 search tokens" in down
    assert "drops=['ix_customers_email']" in down
    assert read(world, plain()) == ROWS
    assert differences(world.engine, plain()) == []
    app.check(plain())
    app.downgrade(sealed(), "-1")
    assert read(world, sealed()) == ROWS
    assert differences(world.engine, sealed()) == []


def test_a_unique_constraint_over_the_plaintext_goes_and_comes_back(world: World, app: AlembicApp) -> None:
    app.options["render_as_batch"] = True
    before = models(UniqueConstraint("tenant_id", "email", name="uq_customers_email"))
    after = models(email=mapped_column(EncryptedString()))
    app.autogenerate(before)
    revision = app.autogenerate(after)
    assert "drops=['uq_customers_email']" in body(revision)
    app.check(after)
    app.downgrade(before, "-1")
    assert differences(world.engine, before) == []


def test_bytes_that_are_not_sealed_are_left_to_alembic(world: World, app: AlembicApp) -> None:
    app.autogenerate(models(email=mapped_column(LargeBinary)))
    with world.engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO customers (id, tenant_id, email) VALUES (1, 'acme', 'plain')")
    config = app.config(models())
    script: Any = command.revision(config, autogenerate=True, rev_id="r2")
    assert "decrypt_column" not in Path(script.path).read_text()


def test_an_application_that_is_not_attached_leaves_out_the_tenant_column(
    world: World, make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    app = AlembicApp(tmp_path / "app", make_engine(world.url))
    app.autogenerate(models())
    script: Any = command.revision(app.config(models(email=mapped_column(EncryptedString()))), autogenerate=True)
    text_ = Path(script.path).read_text()
    assert "op.encrypt_column('customers', 'email', pii_vault.EncryptedString(), existing_type=" in text_
    assert "tenant_column" not in text_
    with pytest.raises(ConfigurationError, match=r"needs the vault .*context\.configure\(…, pii_vault=vault\)"):
        app.upgrade(models())
    app.options["pii_vault"] = world.vault
    with pytest.raises(ConfigurationError, match=r"nobody says whose rows .*tenant_column='tenant_id'"):
        app.upgrade(models())


def rendered(operation: Any) -> list[str]:
    context = MigrationContext.configure(dialect_name="postgresql")
    options = {"alembic_module_prefix": "op.", "sqlalchemy_module_prefix": "sa.", "user_module_prefix": None}
    made = AutogenContext(context, MetaData(), {**options, "render_item": None})
    return [*render_op(made, operation), *sorted(made.imports)]


def test_every_operation_is_written_and_has_its_opposite() -> None:
    kind = EncryptedString(index=True, context="people.mail")
    encrypt = EncryptColumnOp("t", "c", kind, String(5), drops=["ix"], schema="s", tenant_column="who", nullable=False)
    assert rendered(encrypt) == [
        "op.encrypt_column('t', 'c', pii_vault.EncryptedString(context='people.mail', index=True), "
        "existing_type=sa.String(length=5), nullable=False, tenant_column='who', drops=['ix'], schema='s')",
        "import pii_vault.migrations",
    ]
    decrypt: Any = encrypt.reverse()
    assert isinstance(decrypt, DecryptColumnOp)
    assert rendered(decrypt)[0] == (
        "op.decrypt_column('t', 'c', pii_vault.EncryptedString(context='people.mail', index=True), "
        "sa.String(length=5), tenant_column='who', schema='s')"
    )
    assert rendered(decrypt.reverse()) == rendered(encrypt)
    rename = RenameEncryptedColumnOp("t", "c", "d", EncryptedString(), keep_context=False, tenant_column="who")
    assert rendered(rename)[0] == (
        "op.rename_encrypted_column('t', 'c', 'd', pii_vault.EncryptedString(), keep_context=False, "
        "tenant_column='who')"
    )
    back: Any = rename.reverse()
    assert (back.column_name, back.new_column_name, back.before, back.after) == ("d", "c", "t.d", "t.c")
    assert rendered(back.reverse()) == rendered(rename)
    kept = RenameEncryptedColumnOp("t", "c", "d", EncryptedString(context="t.c"), keep_context=True)
    assert rendered(kept.reverse())[0] == (
        "op.rename_encrypted_column('t', 'd', 'c', pii_vault.EncryptedString(), keep_context=True, old_context='t.c')"
    )
    assert rendered(kept.reverse().reverse()) == rendered(kept)
    again = ReencryptOp(["t", "s.u"], tenants=["acme"])
    assert rendered(again)[0] == "op.reencrypt('t', 's.u', tenants=['acme'])"
    assert rendered(again.reverse()) == rendered(again)
    with pytest.raises(ValueError, match="existing_type"):
        EncryptColumnOp("t", "c", kind, None).reverse()


def test_types_are_written_out_so_that_they_can_be_read_back() -> None:
    for kind in (
        EMAIL,
        EncryptedArray(EncryptedString()),
        EncryptedNumeric(index=BlindIndex(part=Bucket(width=Decimal("0.5")))),
        EncryptedString(tokens={"a": BlindIndex(slot=3, part=LastChars(4), bits=12, name="x", create=False)}),
    ):
        line, *imports = rendered(EncryptColumnOp("t", "c", kind, None))
        names: dict[str, Any] = {}
        exec("\n".join(imports), names)
        class_ = type("op", (), {"encrypt_column": staticmethod(lambda _table, _column, kind: kind)})
        read_back = eval(line, {**names, "op": class_})
        assert repr(read_back) == repr(kind)


def test_a_type_that_is_made_inside_a_function_is_refused() -> None:
    class Own(EncryptedString):
        pass

    with pytest.raises(ConfigurationError, match="inside a function"):
        rendered(EncryptColumnOp("t", "c", Own(), None))
