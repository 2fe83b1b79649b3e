"""The key store: the tables that hold tenants, key records, use counts and the audit log. No key is in clear here."""

from .change import Change as Change
from .change import SupersededError as SupersededError
from .engine import OWN_STATEMENTS as OWN_STATEMENTS
from .onboarding_record import OnboardingRecord as OnboardingRecord
from .onboarding_record import OnboardingStep as OnboardingStep
from .onboarding_record import Way as Way
from .rows import AuditKeyRecord as AuditKeyRecord
from .snapshot import KeyStates as KeyStates
from .snapshot import Snapshot as Snapshot
from .snapshot import TenantSummary as TenantSummary
from .store import KeyStore as KeyStore
