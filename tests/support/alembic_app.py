"""An application's own Alembic environment, in a folder, on a database."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import alembic
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, MetaData

ENV = """
from alembic import context
from pii_vault.migrations import include_object, render_item

options = dict(
    target_metadata=context.config.attributes["metadata"],
    include_object=include_object,
    render_item=render_item,
    **context.config.attributes["options"],
)
if context.is_offline_mode():
    context.configure(url=context.config.attributes["url"], literal_binds=True, **options)
    with context.begin_transaction():
        context.run_migrations()
else:
    with context.config.attributes["engine"].connect() as connection:
        context.configure(connection=connection, **options)
        with context.begin_transaction():
            context.run_migrations()
"""


@dataclass
class AlembicApp:
    """Revisions that are made, run, checked and undone with Alembic's own commands."""

    folder: Path
    engine: Engine
    options: dict[str, Any] = field(default_factory=dict)
    env: str = ENV
    more: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.folder / "versions").mkdir(parents=True)
        template = Path(alembic.__file__).parent / "templates" / "generic" / "script.py.mako"
        shutil.copy(template, self.folder / "script.py.mako")
        (self.folder / "env.py").write_text(self.env)

    def config(self, metadata: MetaData) -> Config:
        config = Config(output_buffer=StringIO(), stdout=StringIO())
        config.set_main_option("script_location", str(self.folder))
        config.set_main_option("path_separator", "os")
        url = self.engine.url.render_as_string(hide_password=False)
        config.attributes.update(self.more, metadata=metadata, engine=self.engine, options=self.options, url=url)
        return config

    def autogenerate(self, metadata: MetaData) -> str:
        """Write a revision, run it, and return its text."""
        number = len(list((self.folder / "versions").glob("*.py"))) + 1
        script: Any = command.revision(self.config(metadata), autogenerate=True, rev_id=f"r{number}")
        self.upgrade(metadata)
        return Path(script.path).read_text()

    def write(self, body: str) -> None:
        """Write a revision whose upgrade does this."""
        lines = "\n    ".join(body.strip().splitlines())
        self.write_revision(f"def upgrade():\n    {lines}\n")

    def write_revision(self, functions: str) -> None:
        """Write a revision that has these functions."""
        names = sorted(each.name.partition("_")[0] for each in (self.folder / "versions").glob("*.py"))
        number, down = len(names) + 1, names[-1] if names else None
        head = "import sqlalchemy as sa\nfrom alembic import context, op\nimport pii_vault.migrations\n"
        head += f"revision, down_revision = 'r{number}', {down!r}\n\n"
        (self.folder / "versions" / f"r{number}_by_hand.py").write_text(head + functions)

    def upgrade(self, metadata: MetaData) -> None:
        command.upgrade(self.config(metadata), "head")

    def downgrade(self, metadata: MetaData, to: str = "base") -> None:
        command.downgrade(self.config(metadata), to)

    def sql(self, metadata: MetaData, way: str = "head") -> str:
        """Return a migration as SQL, as ``--sql`` writes it."""
        config = self.config(metadata)
        (command.upgrade if not way.endswith("base") else command.downgrade)(config, way, sql=True)
        written: str = config.output_buffer.getvalue()
        return written

    def check(self, metadata: MetaData) -> None:
        """Raise where ``alembic check`` would exit with an error: autogenerate finds something to do."""
        command.check(self.config(metadata))
