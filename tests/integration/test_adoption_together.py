"""The parts of an adoption together: models, hooks, the guard and the stages, as an application has them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, inspect, select
from sqlalchemy.orm import Session
from tests.support.adopting import DATABASES, People, Person
from tests.support.adoption_app import example
from tests.support.alembic_app import AlembicApp
from tests.support.world import World

from pii_vault.errors import AdoptionError


def test_reads_fall_back_to_what_the_release_before_has_written_and_end_with_the_switch(people: People) -> None:
    vault, engine = people.world.vault, people.engine
    vault.attach(engine, tenant_column="tenant_id")

    def read() -> list[str | None]:
        with vault.tenant("acme"), Session(engine) as session:
            return list(session.scalars(select(Person.email_sealed).order_by(Person.id)))

    people.add("ann@a.example", "bea@a.example")
    people.up("filled")
    people.sql("UPDATE people SET email = 'new@a.example' WHERE id = 2")  # by somebody who knows only the one
    with pytest.raises(AdoptionError, match="pii-vault adopt fallback"):
        read()
    people.adoption.allow_fallback(datetime.now(UTC) + timedelta(days=1))
    vault._parts.keyring.adoptions.look()
    assert read() == ["ann@a.example", "new@a.example"]
    with vault.tenant("acme"), Session(engine) as session, session.begin():
        session.get_one(Person, 1).email = "both@a.example"
    assert read() == ["both@a.example", "new@a.example"]
    people.up("switched")
    vault._parts.keyring.adoptions.look()
    assert read() == ["both@a.example", "new@a.example"]
    assert people.adoption.status().fallback_until is None


@pytest.fixture(params=list(DATABASES))
def app(
    request: pytest.FixtureRequest,
    world_on: Callable[..., World],
    make_engine: Callable[..., Engine],
    tmp_path: Path,
) -> AlembicApp:
    """An environment that names the vault."""
    keys = {"key_store_url": f"sqlite:///{tmp_path / 'keys.sqlite3'}"} if request.param == "mariadb" else {}
    world = world_on(request.getfixturevalue(DATABASES[request.param]), **keys)
    engine = make_engine(world.url)
    world.vault.attach(engine, tenant_column="tenant_id")
    return AlembicApp(tmp_path / "alembic", engine, {"pii_vault": world.vault})


@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
@pytest.mark.filterwarnings("ignore:autogenerate skipping metadata-specified expression-based index")
def test_autogenerate_writes_the_migrations_of_every_release_and_finds_nothing_else(app: AlembicApp) -> None:
    releases = example("releases")
    plain, both, sealed, final = (
        getattr(releases, name).Base.metadata for name in ("Plain", "Both", "Sealed", "Final")
    )
    app.autogenerate(plain)
    written = app.autogenerate(both)
    assert "op.add_column('customers', sa.Column('email_sealed'" in written
    assert "op.create_blind_index('ix_customers_email_sealed_blind', 'customers', 'email_sealed', slot=0" in written
    assert "op.add_column('notes', sa.Column('body_sealed'" in written
    assert "Encrypted" not in written
    assert written.count("op.") == 2 * 3
    app.check(both)
    app.check(sealed)
    written = app.autogenerate(final)
    for gone in ("op.drop_column('customers', 'email')", "op.drop_column('notes', 'body')"):
        assert gone in written
    assert "encrypt_column" not in written
    app.check(final)
    for revision, names in (("r2", {"email", "email_sealed"}), ("r1", {"email"})):
        app.downgrade(plain, revision)
        found = {each["name"] for each in inspect(app.engine).get_columns("customers")}
        # MariaDB keeps a token in a column of its own.
        assert {name for name in found if not name.startswith("pii_vault_")} == {"id", "tenant_id", *names}
