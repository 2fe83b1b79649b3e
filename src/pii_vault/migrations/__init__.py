"""For an application's own Alembic environment: encrypted columns in migrations, and in what autogenerate writes.

Importing this module teaches Alembic its operations: for indexes over tokens ``op.create_blind_index``,
``op.drop_blind_index`` and ``op.build_index``; for columns ``op.encrypt_column``, ``op.decrypt_column``,
``op.rename_encrypted_column`` and ``op.reencrypt``. Autogenerate writes them. `include_object` and `render_item` are
given to ``context.configure``, and so is the vault: ``pii_vault=``. docs/migrations.md shows an environment.
"""

from . import autogenerate as _autogenerate  # noqa: F401 - it registers itself with Alembic
from . import column_rendering as _column_rendering  # noqa: F401 - likewise
from .building import BuildIndexOp as BuildIndexOp
from .columns import DecryptColumnOp as DecryptColumnOp
from .columns import EncryptColumnOp as EncryptColumnOp
from .filters import include_object as include_object
from .filters import render_item as render_item
from .operations import CreateBlindIndexOp as CreateBlindIndexOp
from .operations import DropBlindIndexOp as DropBlindIndexOp
from .reencrypting import ReencryptOp as ReencryptOp
from .renaming import RenameEncryptedColumnOp as RenameEncryptedColumnOp
