"""Every exception of the project, and nothing else.

::

    PiiVaultError                       never raised itself; has a hint and says whether a retry can help
    ├── ConfigurationError              programmer or operator, before any key is used (also a ValueError)
    ├── ScopeError                      who is the tenant now?
    │   ├── NoTenantError               nobody
    │   └── TenantMismatchError         somebody else: a row, a session or a value of another tenant
    ├── EncodingError                   the value does not fit the column's type (also a ValueError)
    ├── UnsupportedOperationError       SQL that a sealed column cannot answer; says what can
    ├── BlindIndexError                 a column is not searched now: the answer could be wrong
    │   ├── IndexNotReadyError          some values have no token yet; says how many
    │   └── DuplicateValueError         a unique value is there already (also SQLAlchemy's IntegrityError)
    ├── OpenError                       stored bytes could not be turned back into a value
    │   ├── FormatError                 they are not a sealed value this release knows
    │   │   └── NotEncryptedError       they are not a sealed value at all
    │   ├── CodecMismatchError          sealed for a column of another type
    │   ├── ForeignValueError           sealed under another keyset (also a TenantMismatchError)
    │   └── KeyNotFoundError            sealed under a key version that the keyset does not hold
    ├── TenantError                     the tenant as registered in the key store
    │   ├── TenantNotFoundError
    │   ├── TenantExistsError           registered already, with another KMS key
    │   ├── TenantSuspendedError
    │   ├── PiiEncryptionDisabledError  PII encryption is not on for it: a feature that a tenant has or has not
    │   └── TenantErasedError           its keys are destroyed for good; its name is not used again
    ├── KeyRecordError                  a stored key record is not what was written: tampered or mixed up
    ├── KeyValidationError              a key did not pass the checks before its use; says which
    ├── KeyLimitError                   the key has sealed as many values as it may, or may not be counted now
    ├── AuditError                      the audit log is not what was written
    ├── BackfillError                   a column cannot be sealed, or opened, row by row; names the rows
    ├── AdoptionError                   a plaintext column is not so far on its way to a sealed one
    ├── OnboardingError                 a customer is not so far on the way to its first key
    ├── KeyStateError                   the key's state forbids this use
    ├── KeyStoreError                   the key store's database failed or does not fit this release
    │   ├── KeyStoreBehindError         a replica was asked that does not know yet what the primary knows: try again
    │   └── KeyStoreBusyError           somebody else is writing to the SQLite file, perhaps the caller: try again
    └── KmsError                        the KMS did not do what was asked; one of five classes
        ├── KmsDeniedError              the customer said no: fail closed, at once
        ├── KmsUnavailableError         outage or throttling: the one that a retry can help
        ├── KmsCorruptError             the wrapped key or its context is not authentic: never retried
        ├── KmsConfigurationError       wrong key, region, usage or argument: no retry
        └── KmsCredentialsError         our own credentials or clock

Safety: no message, argument, cause or context of these carries a value, a key or a sealed value. They inherit
`sqlalchemy.exc.DontWrapMixin`, because SQLAlchemy would otherwise wrap them into a `StatementError` that prints the
plaintext parameters. (SQLAlchemy re-raises such an error "from itself": whoever walks ``__cause__`` guards against
the loop.)
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.exc import DontWrapMixin, IntegrityError


class PiiVaultError(DontWrapMixin, Exception):
    """Base of every error of this package.

    Attributes:
        hint: What to do next, one sentence, or None.
        retryable: True when the same call can succeed later without anybody changing anything.
    """

    retryable: bool = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message} ({self.hint})" if self.hint else message


class ConfigurationError(PiiVaultError, ValueError):
    """The vault, a column or a hook is set up in a way that cannot work."""


class ScopeError(PiiVaultError):
    """The ambient tenant does not allow this."""


class NoTenantError(ScopeError):
    """An encrypted column was used while no tenant is in scope."""


class TenantMismatchError(ScopeError):
    """A row, an object or a session belongs to another tenant than the one in scope."""


class EncodingError(PiiVaultError, ValueError):
    """A value does not fit the type of its column."""


class UnsupportedOperationError(PiiVaultError):
    """A statement asks something of a sealed column that only the plaintext could answer."""


class BlindIndexError(PiiVaultError):
    """A blind index cannot be used now, because an answer could lack rows or count them twice."""


class IndexNotReadyError(BlindIndexError):
    """Some of a tenant's values have no token in this slot yet, and a query would miss them.

    Attributes:
        missing: How many values have none.
        total: How many values there are.
    """

    def __init__(self, message: str, *, missing: int = 0, total: int = 0, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.missing = missing
        self.total = total


class DuplicateValueError(BlindIndexError, IntegrityError):
    """Another row has this value, and the column's index is unique: what the database itself says at other times.

    Raised while an index key is being replaced. Like any `IntegrityError` it leaves a transaction to be rolled back.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        IntegrityError.__init__(self, None, None, ValueError(message))
        self.args = (message,)
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.args[0]} ({self.hint})" if self.hint else str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args, {"hint": self.hint}


class OpenError(PiiVaultError):
    """A stored value could not be opened: its authentication failed.

    One message for every cause that lies behind the authentication tag (changed bytes, another column, another
    tenant's copy, another key), so that the message teaches an attacker nothing.
    """


class FormatError(OpenError):
    """Stored bytes are not a sealed value that this release knows."""


class NotEncryptedError(FormatError):
    """An encrypted column holds something that was never sealed."""


class CodecMismatchError(OpenError):
    """A sealed value was made for a column of another type."""


class ForeignValueError(OpenError, TenantMismatchError):
    """A sealed value belongs to another keyset than that of the tenant in scope."""


class KeyNotFoundError(OpenError):
    """A sealed value names a key version that the tenant's keyset does not hold."""


class TenantError(PiiVaultError):
    """The key store does not allow this for this tenant."""


class TenantNotFoundError(TenantError):
    """No tenant of this name is registered."""


class TenantExistsError(TenantError):
    """A tenant of this name is registered already, with another KMS key."""


class TenantSuspendedError(TenantError):
    """The tenant is suspended: its values are neither sealed nor opened until it is resumed."""


class PiiEncryptionDisabledError(TenantError):
    """PII encryption is not on for the tenant: its values are neither sealed nor opened until it is."""


class TenantErasedError(TenantError):
    """The tenant's keys are destroyed: nothing opens what they sealed, and nothing is sealed for it any more."""


class KeyRecordError(PiiVaultError):
    """A key record failed its authentication, commitment or activation check."""


class KeyValidationError(PiiVaultError):
    """A key did not pass one of the checks that stand before its use, and is not used.

    Attributes:
        check: The name of the check.
    """

    def __init__(self, message: str, *, check: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.check = check


class KeyLimitError(PiiVaultError):
    """A data key has sealed as many values as it may, or its use cannot be counted now: sealing is refused."""


class BackfillError(PiiVaultError):
    """A column was not sealed, or not opened, for all of its rows. What was there before is there still."""


class AdoptionError(PiiVaultError):
    """A plaintext column that becomes a sealed one is not at the stage that this needs, or not as its stage says."""


class AuditError(PiiVaultError):
    """The audit log, or its end, is not what was written."""


class OnboardingError(PiiVaultError):
    """The onboarding of a customer is not so far, or is over. Nothing was changed."""


class KeyStateError(PiiVaultError):
    """A key's state forbids this use, or a transition would go backwards."""


class KeyStoreError(PiiVaultError):
    """The key store cannot be read or written, or has another schema than this release."""


class KeyStoreBehindError(KeyStoreError):
    """The database that was asked is a replica, and behind the primary; nothing is wrong with the keys."""

    retryable = True


class KeyStoreBusyError(KeyStoreError):
    """The key store is a SQLite database that somebody else is writing to, perhaps the caller's own transaction."""

    retryable = True


class KmsError(PiiVaultError):
    """The KMS did not do what was asked.

    Attributes:
        code: The provider's own error code, for example ``AccessDeniedException``.
        operation: The provider's operation, for example ``Decrypt``.
    """

    def __init__(self, message: str, *, code: str = "", operation: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.operation = operation


class KmsDeniedError(KmsError):
    """The customer's KMS refuses: key disabled, deleted or no longer granted to us."""


class KmsUnavailableError(KmsError):
    """The KMS cannot be reached or is throttling; a retry can help.

    Attributes:
        is_outage: False when the KMS has answered with a word that this release does not know. It may be a new kind of
            outage or of refusal, so keys in memory are not used beyond their time because of it.
    """

    retryable = True
    is_outage: bool = True


class KmsCorruptError(KmsError):
    """The KMS says that the wrapped key or its encryption context is not authentic."""


class KmsConfigurationError(KmsError):
    """The request itself is wrong: address, region, key usage, quota or certificate."""


class KmsCredentialsError(KmsError):
    """Our own credentials are missing or expired, or our clock is wrong."""

    retryable = True
