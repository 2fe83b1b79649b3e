"""For an application's own Alembic environment: blind indexes in migrations, and in what autogenerate writes.

Importing this module teaches Alembic the operations ``op.create_blind_index``, ``op.drop_blind_index`` and
``op.build_index``, and lets autogenerate write them. `include_object` and `render_item` are given to
``context.configure``. docs/sqlalchemy.md shows an environment.
"""

from . import autogenerate as _autogenerate  # noqa: F401 - it registers itself with Alembic
from .building import BuildIndexOp as BuildIndexOp
from .columns import DecryptColumnOp as DecryptColumnOp
from .columns import EncryptColumnOp as EncryptColumnOp
from .filters import include_object as include_object
from .filters import render_item as render_item
from .operations import CreateBlindIndexOp as CreateBlindIndexOp
from .operations import DropBlindIndexOp as DropBlindIndexOp
