"""The key store: the tables that hold tenants and key records, and the queries on them. No key is in clear here."""

from .store import OWN_STATEMENTS as OWN_STATEMENTS
from .store import KeyStore as KeyStore
from .store import Snapshot as Snapshot
from .store import TenantSummary as TenantSummary
