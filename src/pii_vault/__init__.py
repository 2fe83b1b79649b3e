"""Encrypted SQLAlchemy columns whose master key stays in each customer's own AWS KMS.

Key custody: each tenant's values are sealed with data keys that are stored wrapped, and that only the tenant's KMS key
can unwrap. Who revokes that key makes the data unreadable within a stated time.

Compatibility of stored data: a value sealed by any release opens under every later one (docs/format.md).
"""

from ._version import __version__ as __version__
from .blind_index import After as After
from .blind_index import BlindIndex as BlindIndex
from .blind_index import Bucket as Bucket
from .blind_index import LastChars as LastChars
from .blind_index import Prefix as Prefix
from .blind_index import normaliser as normaliser
from .errors import PiiVaultError as PiiVaultError
from .kms.aws import AwsKms as AwsKms
from .kms.local import LocalKms as LocalKms
from .orm.encrypted_type import EncryptedType as EncryptedType
from .orm.matching import matching as matching
from .orm.types import EncryptedArray as EncryptedArray
from .orm.types import EncryptedBoolean as EncryptedBoolean
from .orm.types import EncryptedBytes as EncryptedBytes
from .orm.types import EncryptedDate as EncryptedDate
from .orm.types import EncryptedDateTime as EncryptedDateTime
from .orm.types import EncryptedEnum as EncryptedEnum
from .orm.types import EncryptedFloat as EncryptedFloat
from .orm.types import EncryptedInteger as EncryptedInteger
from .orm.types import EncryptedJSON as EncryptedJSON
from .orm.types import EncryptedNumeric as EncryptedNumeric
from .orm.types import EncryptedString as EncryptedString
from .orm.types import EncryptedText as EncryptedText
from .orm.types import EncryptedTime as EncryptedTime
from .orm.types import EncryptedUUID as EncryptedUUID
from .vault import Vault as Vault
