"""The keyring: whose keys this process holds in memory, and for how long."""

from .keyring import Keyring as Keyring
from .loading import check_in_use as check_in_use
from .loading import kms_key as kms_key
from .terms import RECHECK_SECONDS as RECHECK_SECONDS
from .terms import UNCACHED_SECONDS as UNCACHED_SECONDS
from .terms import UNKNOWN_VERSIONS as UNKNOWN_VERSIONS
from .terms import Clock as Clock
from .terms import Terms as Terms
