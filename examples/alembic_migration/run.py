"""Two plaintext columns become sealed ones while an application of four releases goes on writing.

    python examples/alembic_migration/run.py
    python examples/alembic_migration/run.py --database-url postgresql+psycopg://user@host/name

Without a URL it works on a SQLite file of its own. On a database of yours it makes the tables `customers` and `notes`,
and drops them in the end. Exits with 1 when a write failed or was lost, when a value was read wrongly, or when a
plaintext is left.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from releases import Both, Final, Plain, Sealed
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, create_engine, insert, inspect, select, text
from sqlalchemy.orm import Session
from writers import CANARY, Journal, Release, new_value

from pii_vault import LocalKms, Vault

VERSION_TABLE = "alembic_version_of_the_example"
COLUMNS = ("customers.email", "notes.body")


class Story:
    """The application, its database, and what is done with it."""

    release: Any = Release

    def __init__(self, url: str, folder: Path, rows: int, seconds: float) -> None:
        self.url, self.seconds, self.rows = url, seconds, rows
        self.engine = create_engine(url, connect_args={"timeout": 60} if url.startswith("sqlite") else {})
        kms = LocalKms(folder / "kms.json")  # for development; AwsKms() for customers' data
        self.vault = Vault(f"sqlite:///{folder / 'keys.sqlite3'}", kms=kms)
        self.vault.create_all()
        self.journal = Journal(["acme", "globex", "initech"])
        for tenant in self.journal.tenants:
            self.vault.add_tenant(tenant, key=kms.create_key())
        self.vault.attach(self.engine, tenant_column="tenant_id")
        self.deployed: Any = None
        self.number = 0

    # What the team does.

    def migrate(self, revision: str) -> str:
        """Run the application's own migrations."""
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
        config.set_main_option("path_separator", "os")
        config.attributes.update(engine=self.engine, vault=self.vault, version_table=VERSION_TABLE)
        now = inspect(self.engine).has_table(VERSION_TABLE) and self._revision()
        (command.downgrade if now and revision < now else command.upgrade)(config, revision)
        return f"alembic: revision {revision}"

    def deploy(self, models: Any) -> str:
        """Replace the release that runs: for a while both do."""
        self.number += 1
        before, self.deployed = self.deployed, self.release(self.number, models, self.url, self.vault, self.journal)
        time.sleep(self.seconds)
        if before is not None:
            before.stop()
        time.sleep(self.seconds)
        return f"release {models.__name__!r} is deployed"

    def stop(self) -> None:
        """Let nobody write any longer."""
        if self.deployed is not None:
            self.deployed.stop()
            self.deployed = None

    def step(self, direction: str, models: Any) -> str:
        """Take a step with each column: `pii-vault adopt next`, or `rollback`."""
        for column in COLUMNS:
            adoption = self.vault.adoption(column, metadata=models.Base.metadata, engine=self.engine)
            found = adoption.next(quiet=self.seconds) if direction == "next" else adoption.rollback()
        return f"adopt {direction}: {found.stage}"

    def seed(self) -> str:
        """Give the application a past."""
        dice = random.Random(0)
        with self.engine.begin() as connection:
            for kind, field in ((Plain.Customer, "email"), (Plain.Note, "body")):
                rows = [
                    {"id": key, "tenant_id": self.journal.tenant(key), field: new_value(field, key, dice)}
                    for key in range(self.rows)
                ]
                connection.execute(insert(kind), rows)
                for row in rows:
                    self.journal.wrote(kind.__tablename__, row["id"], row[field])
        return f"{self.rows:,} rows in each of two tables"

    # What is found in the end.

    def lost(self, models: Any) -> list[str]:
        """Return the rows that do not hold what was acknowledged last."""
        found: dict[tuple[str, int], str | None] = {}
        for tenant in self.journal.tenants:
            with self.vault.tenant(tenant), Session(self.engine) as session:
                for kind, field in ((models.Customer, "email"), (models.Note, "body")):
                    rows = session.execute(select(kind.id, getattr(kind, field)).where(kind.tenant_id == tenant))
                    found.update(((kind.__tablename__, key), value) for key, value in rows)
        wanted = self.journal.values
        return [f"{table} {key}" for table, key in wanted.keys() | found.keys() if self._differ(table, key, found)]

    def plaintext_left(self) -> int:
        """Return how often a value is found in what the database stores: on SQLite in the file, else in the tables."""
        if self.engine.dialect.name == "sqlite":
            with self.engine.connect() as connection:
                connection.exec_driver_sql("VACUUM")  # a database does not wipe what it drops
            self.engine.dispose()
            path = Path(str(self.engine.url.database))
            return sum(each.read_bytes().count(CANARY.encode()) for each in path.parent.glob(path.name + "*"))
        count = 0
        with self.engine.connect() as connection:
            for table in ("customers", "notes"):
                for row in connection.execute(text(f"SELECT * FROM {table}")):
                    count += sum(CANARY.encode() in bytes(str(each), "utf-8") for each in row if isinstance(each, str))
        return count

    def _differ(self, table: str, key: int, found: dict[tuple[str, int], str | None]) -> bool:
        missing = object()
        return self.journal.values.get((table, key), missing) != found.get((table, key), missing)

    def _revision(self) -> str:
        with self.engine.connect() as connection:
            return str(connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}")))

    def close(self) -> None:
        self.stop()
        self.vault.close()
        self.engine.dispose()


def up() -> list[tuple[str, str, Any]]:
    """Return the way: what is done, and what is deployed, one after the other."""
    return [
        ("deploy", "", Plain),
        ("migrate", "0002", None),
        ("step", "next", Both),  # added: the guard stands
        ("deploy", "", Both),
        ("step", "next", Both),  # filled
        ("step", "next", Both),  # verified
        ("step", "next", Both),  # switched
        ("deploy", "", Sealed),
        ("step", "next", Sealed),  # retired
        ("deploy", "", Final),
        ("step", "next", Final),  # emptied
        ("migrate", "0003", None),
    ]


def down() -> list[tuple[str, str, Any]]:
    """Return the way back, all of it."""
    return [
        ("migrate", "0002", None),
        ("step", "rollback", Final),  # retired
        ("deploy", "", Sealed),
        ("step", "rollback", Sealed),  # switched
        ("deploy", "", Both),
        ("step", "rollback", Both),  # verified
        ("step", "rollback", Both),  # filled
        ("step", "rollback", Both),  # added
        ("deploy", "", Plain),
        ("step", "rollback", Both),  # none
        ("migrate", "0001", None),
    ]


def play(story: Story, console: Console, *, back: bool) -> list[str]:
    """Go the way, show each step, and return what went wrong."""
    journal, problems = story.journal, list[str]()
    story.migrate("0001")
    console.print(f"{story.engine.dialect.name}: {story.seed()}, three tenants, writers at work\n")
    for way, last in ((up(), Final), (down(), Plain))[: 2 if back else 1]:
        table = Table("step", "writes so far", "reads", "failed", "wrong", box=None, header_style="bold")
        for kind, argument, models in way:
            what = {"deploy": lambda m=models: story.deploy(m), "migrate": lambda a=argument: story.migrate(a)}
            done = story.step(argument, models) if kind == "step" else what[kind]()
            counts = (journal.writes, journal.reads, len(journal.failures), len(journal.wrong))
            table.add_row(done, *(f"{each:,}" for each in counts))
        story.stop()
        lost = story.lost(last)
        console.print(table)
        console.print(f"{len(journal.values):,} rows compared with what was acknowledged: {len(lost):,} differ")
        if last is Final:
            left = story.plaintext_left()
            console.print(f"plaintext found in what is stored: {left:,}\n")
            problems += [f"{left} plaintext values are left"] if left else []
        problems += [f"lost: {each}" for each in lost]
    return [*journal.failures, *journal.wrong, *problems]


@contextmanager
def database(given: str | None, folder: Path) -> Iterator[str]:
    """Give a database on which the tables are the example's own, and take them away again."""
    url = given or f"sqlite:///{folder / 'application.sqlite3'}"
    engine: Engine = create_engine(url)
    names = ("customers", "notes", VERSION_TABLE)
    there = [name for name in names if inspect(engine).has_table(name)]
    if there:
        sys.exit(f"the database has {', '.join(there)} already: give one that has not")
    try:
        yield url
    finally:
        with engine.begin() as connection:
            for name in names:
                connection.exec_driver_sql(f"DROP TABLE IF EXISTS {name}")
        engine.dispose()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--database-url", metavar="URL", help="a database that has no tables customers and notes")
    parser.add_argument("--rows", type=int, default=2_000, help="rows in each table at the beginning")
    parser.add_argument("--seconds", type=float, default=0.5, help="for how long two releases run side by side")
    parser.add_argument("--and-back", action="store_true", help="take all of it back afterwards")
    given = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = stack.enter_context(database(given.database_url, folder))
        story = Story(url, folder, given.rows, given.seconds)
        stack.callback(story.close)
        problems = play(story, Console(), back=given.and_back)
    for problem in problems[:20]:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
