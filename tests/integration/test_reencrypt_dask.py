"""Workers of a Dask cluster move a tenant's rows: over TCP, from their own environment, and one may be lost."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url, select, text
from tests.support.canary import Secrets, watched_keys
from tests.support.command import Outcome, pii_vault_command, pii_vault_here
from tests.support.crew_app import COUNTS, Base, Dying, Opening, Person, rows, stored, versions
from tests.support.dask_cluster import DaskCluster, Tap
from tests.support.postgres import PostgresServer
from tests.support.world import World, make_world

from pii_vault.cli.working import ApplicationTask
from pii_vault.errors import ConfigurationError
from pii_vault.reencryption.crews import DaskCrew

METADATA = "tests.support.crew_app:Base"
TASK = ApplicationTask(METADATA, "tenant_id")
VALUES = sum(COUNTS.values()) + COUNTS["people"] - COUNTS["people"] // 5
SECRET = "hunter2-CANARY"


@pytest.fixture(scope="module")
def settings(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What the command and the workers are told by their environment; the URL has a password in it."""
    name = postgres_server.create_database()
    url = make_url(postgres_server.url(name))
    url = url.set(password=url.password or SECRET)
    kms = tmp_path_factory.mktemp("kms") / "kms.json"
    yield {
        "PII_VAULT_DATABASE_URL": url.render_as_string(hide_password=False),
        "PII_VAULT_KMS": f"local:{kms}",
    }
    postgres_server.drop_database(name)


@pytest.fixture(scope="module")
def world(settings: dict[str, str]) -> Iterator[World]:
    folder = Path(settings["PII_VAULT_KMS"].removeprefix("local:")).parent
    made = make_world(settings["PII_VAULT_DATABASE_URL"], folder, create_engine, Base.metadata)
    with made.session() as session:
        session.add_all(rows("acme"))
    yield made
    made.vault.close()
    made.engine.dispose()


@pytest.fixture(scope="module")
def cluster(settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    made = DaskCluster(tmp_path_factory.mktemp("dask"), settings)
    try:
        made.add_worker()
        yield made
    finally:
        made.close()


@pytest.fixture(autouse=True)
def rotated(world: World) -> int:
    """The version that values are to have."""
    return world.vault.rotate("acme").version


def run(world: World, crew: DaskCrew, **options: Any) -> Any:
    return world.vault.reencrypt("acme", metadata=Base.metadata, engine=world.engine, crew=crew, **options)


def test_workers_move_every_row_and_what_travels_tells_nothing(
    cluster: DaskCluster, world: World, settings: dict[str, str], rotated: int
) -> None:
    secrets = Secrets(SECRET, *(f"acme-{n}@example.com" for n in range(COUNTS["people"])))
    sealed = [bytes(value) for read in stored(world.engine).values() for row in read for value in row[1:] if value]
    tap = Tap(cluster.address)
    try:
        with closing(DaskCrew(TASK, tap.address)) as crew, watched_keys(secrets):
            assert crew.size == 1
            assert run(world, crew, batch=10).left == 0
            world.vault.evict("acme")
            with world.session() as session:
                session.scalars(select(Person.email)).all()
    finally:
        tap.close()
    assert versions(world.engine) == {rotated: VALUES}
    sent = bytes(tap.seen)
    assert b"tests.support.crew_app:Base" in sent  # it is read as it was sent
    assert secrets.in_bytes(sent) == set()
    database = make_url(settings["PII_VAULT_DATABASE_URL"]).database
    for hidden in (database, "postgresql", settings["PII_VAULT_KMS"], "kms.json", *world.keys.values()):
        assert str(hidden).encode() not in sent
    assert [each for each in sealed if each in sent] == []
    assert b"settings" not in pickle.dumps(TASK) or pickle.loads(pickle.dumps(TASK)).settings is None


def test_a_worker_that_is_killed_has_its_parts_done_by_others(
    cluster: DaskCluster, world: World, settings: dict[str, str], tmp_path: Path, rotated: int
) -> None:
    extra = cluster.add_worker()
    kms = settings["PII_VAULT_KMS"].removeprefix("local:")
    dying = Dying(settings["PII_VAULT_DATABASE_URL"], kms, str(tmp_path / "mark"), 2)
    first = cluster.workers[0]
    with closing(DaskCrew(dying, cluster.address)) as crew:
        assert crew.size == 2
        assert run(world, crew, batch=10).left == 0
    assert (tmp_path / "mark").exists()
    assert [each.poll() for each in (first, extra)].count(-9) == 1
    assert versions(world.engine) == {rotated: VALUES}


def test_the_command_lets_workers_do_it(
    cluster: DaskCluster, world: World, settings: dict[str, str], rotated: int
) -> None:
    with world.engine.begin() as connection:
        connection.execute(text("UPDATE people SET email = set_byte(email, 30, get_byte(email, 30) # 1) WHERE id = 7"))
    how = ("--metadata", METADATA, "--tenant-column", "tenant_id", "--engine", "dask", "--scheduler", cluster.address)
    try:
        done = pii_vault_command("reencrypt", "acme", *how, **settings)
        assert done.code == 1
        assert done.out.startswith(f"acme\t{rotated}\t1\trun again after ")
        named, way = done.err.splitlines()
        assert named.startswith("pii-vault: tenant 'acme': people.email of the row 7: a value of ")
        assert way == "pii-vault: what is named stays as it is (mend it or delete it, and run the same command again)"
        assert versions(world.engine) == {rotated - 1: 1, rotated: VALUES - 1}
    finally:
        with world.engine.begin() as connection:
            connection.execute(
                text("UPDATE people SET email = set_byte(email, 30, get_byte(email, 30) # 1) WHERE id = 7")
            )
    mended = command(settings, *how)
    assert (mended.code, mended.err) == (0, "")
    assert versions(world.engine) == {rotated: VALUES}


def command(settings: dict[str, str], *how: str) -> Outcome:
    return pii_vault_here("reencrypt", "acme", *how, **settings)


def fails(settings: dict[str, str], *how: str, code: int = 1) -> str:
    done = command(settings, "--metadata", METADATA, *how)
    assert (done.code, done.out) == (code, ""), done
    assert done.err.count("\n") == 1, done.err
    return done.err


def test_what_lacks_is_named(
    cluster: DaskCluster, world: World, settings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dask, before = ("--engine", "dask"), stored(world.engine)
    assert "--engine dask needs --scheduler" in fails(settings, *dask, code=2)
    assert "--scheduler belongs to --engine dask" in fails(settings, "--scheduler", cluster.address, code=2)
    assert "has the workers that it has" in fails(
        settings, *dask, "--scheduler", cluster.address, "--workers", "2", code=2
    )
    monkeypatch.setattr("pii_vault.reencryption.crews._SECONDS", 0.5)
    assert "no Dask scheduler answers at tcp://127.0.0.1:1: OSError (start one with `dask scheduler`, and" in fails(
        settings, *dask, "--scheduler", "tcp://127.0.0.1:1"
    )
    for wrong in ("nonsense://127.0.0.1:1", "tls://127.0.0.1:1", "", "tcp://"):
        assert f"no Dask scheduler answers at {wrong}: " in fails(settings, *dask, "--scheduler", wrong)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "distributed", None)
        told = fails(settings, *dask, "--scheduler", cluster.address)
        assert told == "pii-vault: Dask is not installed (pip install 'pii-vault[dask]')\n"
    assert stored(world.engine) == before


def test_a_worker_that_cannot_is_named_and_a_scheduler_that_dies_too(
    world: World, settings: dict[str, str], tmp_path: Path, rotated: int
) -> None:
    cluster = DaskCluster(tmp_path)
    try:
        dask = ("--engine", "dask", "--scheduler", cluster.address)
        assert f"the Dask scheduler at {cluster.address} has no worker (start some: dask worker tcp" in fails(
            settings, *dask
        )
        cluster.add_worker()  # with an empty environment
        assert "pii-vault: no database_url is set" in fails(settings, *dask)
        opening = Opening(settings["PII_VAULT_DATABASE_URL"], settings["PII_VAULT_KMS"].removeprefix("local:"))
        with closing(DaskCrew(opening, cluster.address)) as crew:

            def end(_table: str, done: int, _total: int) -> None:
                if done:
                    cluster.end_scheduler()

            with pytest.raises(
                ConfigurationError, match=r"a worker failed: the scheduler is gone \(what is done stays"
            ):
                run(world, crew, batch=10, progress=end)
    finally:
        cluster.close()
    assert 0 < versions(world.engine)[rotated] < VALUES
