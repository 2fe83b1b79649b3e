"""The key store's schema: made by migrations or at once, it is the same, and it is never taken for what it is not."""

import logging
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, inspect, text
from tests.support.catalogue import catalogue
from tests.support.processes import forking

from pii_vault import LocalKms, Vault
from pii_vault.errors import KeyStoreError
from pii_vault.keystore import KeyStore, schema
from pii_vault.keystore.upgrade import MIGRATIONS, check, current, options, upgrade

MakeEngine = Callable[..., Engine]


def vault_on(engine: Engine, folder: Path) -> Vault:
    return Vault(engine, kms=LocalKms(folder / "kms.json"))


@pytest.fixture
def other_url(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> Iterator[str]:
    """A second fresh database of the same kind."""
    if database_url.startswith("sqlite"):
        yield f"sqlite:///{tmp_path / 'other.sqlite3'}"
        return
    server = request.getfixturevalue("postgres_server")
    name = server.create_database()
    yield server.url(name)
    server.drop_database(name)


def test_an_upgraded_database_equals_a_created_one(
    database_url: str, other_url: str, make_engine: MakeEngine, tmp_path: Path
) -> None:
    upgraded, created = make_engine(database_url), make_engine(other_url)
    assert upgrade(upgraded) == schema.REVISION
    vault_on(created, tmp_path).create_all()
    assert catalogue(upgraded) == catalogue(created)
    assert differences(upgraded) == differences(created) == []


def test_upgrading_a_created_database_changes_nothing(
    database_url: str, make_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = make_engine(database_url)
    vault_on(engine, tmp_path).create_all()
    before, uid = catalogue(engine), application_uid(engine)
    assert upgrade(engine) == schema.REVISION
    assert catalogue(engine) == before
    assert application_uid(engine) == uid


def test_upgrading_gives_the_application_its_uid_once(database_url: str, make_engine: MakeEngine) -> None:
    engine = make_engine(database_url)
    upgrade(engine)
    uid = application_uid(engine)
    assert len(uid) == 16
    upgrade(engine)
    assert application_uid(engine) == uid


def test_an_upgraded_database_serves_a_vault(database_url: str, make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine(database_url)
    upgrade(engine)
    kms = LocalKms(tmp_path / "kms.json")
    vault = Vault(engine, kms=kms)
    vault.add_tenant("acme", key=kms.create_key())
    assert vault.rotate("acme").version == 2


def test_the_key_store_lives_beside_an_applications_own_alembic(
    database_url: str, make_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = make_engine(database_url)
    config = application_migrations(tmp_path / "app", database_url, "upgrade(engine)")
    command.upgrade(config, "head")
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "a1"
        assert connection.scalar(text("SELECT version_num FROM pii_vault_revision")) == schema.REVISION
    assert inspect(engine).has_table("customers")
    assert differences(engine) == []


def test_an_application_may_upgrade_the_key_store_from_inside_its_own_environment(
    database_url: str, make_engine: MakeEngine, tmp_path: Path
) -> None:
    config = application_migrations(tmp_path / "app", database_url, "upgrade(engine)")
    command.upgrade(config, "head")
    command.downgrade(config, "base")
    command.upgrade(config, "head")
    assert current(make_engine(database_url)) == schema.REVISION


def test_the_migrations_leave_logging_alone(database_url: str, make_engine: MakeEngine) -> None:
    root = logging.getLogger()
    own = logging.getLogger("an.application")
    before = (root.level, list(root.handlers), own.level, own.disabled, logging.root.manager.disable)
    upgrade(make_engine(database_url))
    check(make_engine(database_url))
    assert (root.level, list(root.handlers), own.level, own.disabled, logging.root.manager.disable) == before


def test_the_alembic_command_works_on_the_packaged_environment(database_url: str, make_engine: MakeEngine) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("sqlalchemy.url", database_url.replace("%", "%%"))
    command.upgrade(config, "head")
    command.check(config)
    assert current(make_engine(database_url)) == schema.REVISION


def test_a_key_store_is_not_downgraded(database_url: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("sqlalchemy.url", database_url.replace("%", "%%"))
    command.upgrade(config, "head")
    with pytest.raises(NotImplementedError, match="restore a backup"):
        command.downgrade(config, "base")


def test_the_revisions_named_in_the_schema_are_the_ones_in_the_folder() -> None:
    script = ScriptDirectory(str(MIGRATIONS))
    assert tuple(reversed([each.revision for each in script.walk_revisions()])) == schema.REVISIONS


def test_an_empty_database_has_no_revision_and_one_problem(database_url: str, make_engine: MakeEngine) -> None:
    engine = make_engine(database_url)
    assert current(engine) is None
    assert check(engine).problems == ("the database has no key store",)
    assert inspect(engine).get_table_names() == []


def test_a_key_store_in_order_has_no_problem(database_url: str, make_engine: MakeEngine) -> None:
    engine = make_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE customers (id INTEGER PRIMARY KEY)"))
    upgrade(engine)
    status = check(engine)
    assert status.problems == ()
    assert status.revision == status.expected == schema.REVISION


def test_a_missing_trigger_index_or_column_is_found(database_url: str, make_engine: MakeEngine) -> None:
    engine = make_engine(database_url)
    upgrade(engine)
    trigger = "pii_vault_keys_update" if engine.dialect.name == "sqlite" else "pii_vault_keys_forward_only"
    table = "" if engine.dialect.name == "sqlite" else " ON pii_vault_keys"
    with engine.begin() as connection:
        connection.execute(text(f"DROP TRIGGER {trigger}{table}"))
        connection.execute(text("DROP INDEX uq_pii_vault_keks_one_active"))
        connection.execute(text("ALTER TABLE pii_vault_keys DROP COLUMN kms_key_material_id"))
    problems = "\n".join(check(engine).problems)
    assert f"the trigger {trigger} is missing" in problems
    assert "uq_pii_vault_keks_one_active" in problems
    assert "kms_key_material_id" in problems


@pytest.mark.parametrize("call", [upgrade, lambda engine: KeyStore(engine).names()], ids=["upgrade", "use"])
def test_tables_of_a_newer_release_are_refused(
    database_url: str, make_engine: MakeEngine, call: Callable[[Engine], Any]
) -> None:
    engine = make_engine(database_url)
    upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE pii_vault_revision SET version_num = '9999'"))
    with pytest.raises(KeyStoreError, match=r"revision 9999.*upgrade pii_vault"):
        call(engine)
    assert check(engine).problems == ("the key store's tables are of a newer release of pii_vault",)


def test_a_vault_refuses_tables_of_a_newer_release(database_url: str, make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine(database_url)
    vault_on(engine, tmp_path).create_all()
    with engine.begin() as connection:
        connection.execute(text("UPDATE pii_vault_revision SET version_num = '9999'"))
    late = vault_on(engine, tmp_path)
    for call in (late.create_all, late.tenants, late.tenant("acme").__enter__, lambda: late.rotate("acme")):
        with pytest.raises(KeyStoreError, match="revision 9999"):
            call()


def test_a_process_that_runs_goes_on_while_a_newer_release_upgrades_the_tables(
    database_url: str, make_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = make_engine(database_url)
    vault = vault_on(engine, tmp_path)
    vault.create_all()
    with engine.begin() as connection:
        connection.execute(text("UPDATE pii_vault_revision SET version_num = '9999'"))
    assert vault.tenants() == []


def test_a_database_without_a_key_store_says_how_to_make_one(
    database_url: str, make_engine: MakeEngine, tmp_path: Path
) -> None:
    with pytest.raises(KeyStoreError, match="pii-vault db upgrade"):
        vault_on(make_engine(database_url), tmp_path).tenants()


def test_the_migrations_are_found_in_the_installed_package() -> None:
    folder = resources.files("pii_vault.keystore") / "migrations"
    names = {item.name for item in folder.iterdir()}
    assert {"env.py", "script.py.mako", "versions"} <= names
    assert (folder / "versions" / "0001_key_store.py").is_file()


def test_the_wheel_holds_the_migrations(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    code = textwrap.dedent(f"""
        import sys
        sys.path = [path for path in sys.path if path]
        from hatchling.builders.wheel import WheelBuilder
        print(next(WheelBuilder({str(root)!r}).build(directory={str(tmp_path)!r}, versions=["standard"])))
    """)
    built = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    with zipfile.ZipFile(built.stdout.split()[-1]) as wheel:
        names = set(wheel.namelist())
    for name in ("env.py", "script.py.mako", "versions/0001_key_store.py"):
        assert f"pii_vault/keystore/migrations/{name}" in names
    assert "pii_vault/py.typed" in names


def test_processes_that_create_at_once_end_with_one_application_uid(database_url: str, tmp_path: Path) -> None:
    race(_create, database_url, tmp_path)
    assert_one_application(database_url)


def test_creating_and_upgrading_at_once_end_with_one_schema(database_url: str, tmp_path: Path) -> None:
    race(_create_or_upgrade, database_url, tmp_path)
    assert_one_application(database_url)


def race(work: Callable[[str, Path, int], None], url: str, folder: Path, processes: int = 4) -> None:
    context = forking()
    barrier = context.Barrier(processes)
    running = [context.Process(target=_racer, args=(work, url, folder, number, barrier)) for number in range(processes)]
    for process in running:
        process.start()
    for process in running:
        process.join(timeout=120)
    assert [process.exitcode for process in running] == [0] * processes


def _racer(work: Any, url: str, folder: Path, number: int, barrier: Any) -> None:
    barrier.wait(timeout=60)
    work(url, folder, number)


def _create(url: str, folder: Path, _number: int) -> None:
    vault = Vault(url, kms=LocalKms(folder / "kms.json"))
    vault.create_all()
    vault.close()


def _create_or_upgrade(url: str, folder: Path, number: int) -> None:
    if number % 2:
        _create(url, folder, number)
        return
    engine = create_engine(url)
    upgrade(engine)
    engine.dispose()


def assert_one_application(url: str) -> None:
    engine = create_engine(url)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM pii_vault_application")) == 1
        assert connection.scalars(text("SELECT version_num FROM pii_vault_revision")).all() == [schema.REVISION]
    assert check(engine).problems == ()
    engine.dispose()


def application_uid(engine: Engine) -> bytes:
    with engine.connect() as connection:
        return bytes(connection.scalar(text("SELECT uid FROM pii_vault_application")) or b"")


def differences(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts=options() | {"compare_server_default": True})
        return list(compare_metadata(context, schema.metadata))


def application_migrations(folder: Path, url: str, key_store: str) -> Config:
    """An application with one migration of its own, whose environment also upgrades the key store."""
    (folder / "versions").mkdir(parents=True)
    (folder / "env.py").write_text(
        textwrap.dedent(f"""
        from alembic import context
        from sqlalchemy import create_engine
        from pii_vault.keystore.upgrade import upgrade

        engine = create_engine({url!r})
        {key_store}
        with engine.begin() as connection:
            context.configure(connection=connection)
            context.run_migrations()
        engine.dispose()
        """)
    )
    (folder / "versions" / "a1.py").write_text(
        textwrap.dedent("""
        import sqlalchemy as sa
        from alembic import op

        revision, down_revision = "a1", None

        def upgrade():
            op.create_table("customers", sa.Column("id", sa.Integer, primary_key=True))

        def downgrade():
            op.drop_table("customers")
        """)
    )
    config = Config()
    config.set_main_option("script_location", str(folder))
    return config
