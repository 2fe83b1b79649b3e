"""A KMS in one key file, for development, demonstrations and tests.

What it is for: the whole project on a laptop, without an account, with the key states, error classes and
codes of AWS KMS; several processes see one another's changes at their next call.

What it is not for: customers' data. Whoever can read the file can open everything, there is no policy, no
audit trail and no second person. `LocalKms.check_database` therefore refuses a database that is not on this
machine.
"""

from __future__ import annotations

import os
import re
import secrets
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final, NoReturn

from sqlalchemy.engine import URL

from ..context import lp
from ..errors import ConfigurationError, KmsConfigurationError, KmsError, OpenError
from ..primitives import open_, seal
from .aws_errors import kms_error
from .base import (
    MAX_ROTATION_DAYS,
    MIN_ROTATION_DAYS,
    GeneratedKey,
    KmsKey,
    KmsKeyDescription,
    KmsRotation,
    KmsRotationHistory,
    KmsRotationStatus,
    WrappedKey,
)
from .local_file import Contents, KeyFile, LocalKey, Material

_ARN_PREFIX: Final = "arn:local:kms:local:000000000000:key/"
_ARN: Final = re.compile(re.escape(_ARN_PREFIX) + r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LABEL: Final = b"pii_vault/1/local-kms"
_BLOB_FORMAT: Final = b"\x01"
_HEADER_BYTES: Final = 1 + 16 + 16
_KEY_BYTES: Final = 32
_DAY: Final = 86_400.0


class LocalKms:
    """A development KMS in a key file of mode 0600, made when it is missing.

    Thread-safe and fork-safe; changes are safe between processes where the system has `fcntl`.

    Args:
        path: The key file. Its folder must exist. A lock file ``<path>.lock`` appears beside it.
        insecure_allow_remote_database: Let `check_database` accept databases on other machines.
        clock: Seconds of the wall clock.

    Raises:
        ConfigurationError: no such folder, a file that others can read, or not a key file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        insecure_allow_remote_database: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = Path(path).absolute()
        self._insecure_allow_remote_database = insecure_allow_remote_database
        self._clock = clock
        self._file = KeyFile(self._path)

    def __repr__(self) -> str:
        return f"LocalKms({str(self._path)!r})"

    # What every KMS does.

    def generate(self, key: KmsKey, context: Mapping[str, str]) -> GeneratedKey:
        """Make 32 random bytes and return them with the same wrapped under `key` and `context`."""
        plaintext = secrets.token_bytes(_KEY_BYTES)
        return GeneratedKey(plaintext, self._wrap(key, plaintext, context, "GenerateDataKey"))

    def unwrap(self, key: KmsKey, blob: bytes, context: Mapping[str, str]) -> bytes:
        """Return the plaintext of `blob`, which was wrapped under exactly this `key` and `context`."""
        return self._unwrap(key, blob, context, "Decrypt")

    def rewrap(self, source: KmsKey, destination: KmsKey, blob: bytes, context: Mapping[str, str]) -> WrappedKey:
        """Wrap the same plaintext under `destination`; the context stays."""
        self._usable(destination, "ReEncrypt")
        return self._wrap(destination, self._unwrap(source, blob, context, "ReEncrypt"), context, "ReEncrypt")

    def describe(self, key: KmsKey) -> KmsKeyDescription:
        """Return what the file says about `key`, in whatever state it is."""
        found = self._find(key, "DescribeKey")
        created = datetime.fromtimestamp(found.created_at, UTC)
        return KmsKeyDescription(
            key.arn,
            "000000000000",
            "local",
            found.state,
            "ENCRYPT_DECRYPT",
            "SYMMETRIC_DEFAULT",
            created,
            found.materials[-1].material_id,
            datetime.fromtimestamp(found.deletion_at, UTC) if found.deletion_at is not None else None,
        )

    def check_unwrap(self, key: KmsKey, blob: bytes, context: Mapping[str, str]) -> None:
        """Raise what `unwrap` would raise, and throw away what it would return."""
        self._unwrap(key, blob, context, "Decrypt")

    def check_rewrap(self, source: KmsKey, destination: KmsKey, blob: bytes, context: Mapping[str, str]) -> None:
        """Raise what `rewrap` would raise, and throw away what it would return."""
        self.rewrap(source, destination, blob, context)

    def rotation_period(self, key: KmsKey) -> timedelta | None:
        """Return how often the key's owner lets it rotate, or None; a key that is to be deleted does not rotate."""
        return self.rotation_status(key).period

    def rotation_status(self, key: KmsKey) -> KmsRotationStatus:
        """Return how often the key's owner lets it rotate. That is only said, so there is no next time."""
        found = self._find(key, "GetKeyRotationStatus")
        if found.rotation_days is None or found.state == "PendingDeletion":
            return KmsRotationStatus(None)
        return KmsRotationStatus(timedelta(days=found.rotation_days))

    def own_rotation_status(self, arn: str) -> KmsRotationStatus:
        """Return the same: who holds the file owns the keys."""
        return self.rotation_status(KmsKey(arn))

    def rotation_history(self, key: KmsKey) -> KmsRotationHistory:
        """Return when the key was given new material; a file of an earlier release does not say when that was."""
        found = self._find(key, "ListKeyRotations")
        if len(found.rotations) < len(found.materials) - 1:
            return KmsRotationHistory((), "an earlier release has rotated this key, and did not write down when")
        return KmsRotationHistory(
            tuple(
                KmsRotation(datetime.fromtimestamp(at, UTC), "on-demand", material) for at, material in found.rotations
            )
        )

    def check_role(self, key: KmsKey) -> None:
        """Do nothing: local keys have no role, and `validate_key` refuses one."""

    def validate_key(self, key: KmsKey) -> None:
        """Refuse an address that is not one of `create_key`.

        Raises:
            KmsConfigurationError: another provider's address, or a role.
        """
        if not _ARN.fullmatch(key.arn):
            raise _refused(f"{key.arn[:200]!r} is not a key of the local KMS", f"{_ARN_PREFIX}<uuid>")
        if key.role_arn is not None or key.external_id is not None:
            raise _refused(f"the local key {key.arn} has no role to assume", "leave role and ExternalId out")
        if key.replica_regions:
            raise _refused(f"the local key {key.arn} has no replicas", "only multi-Region keys of AWS have")

    def check_database(self, url: URL) -> None:
        """Refuse a database that is not on this machine: keys beside the data are for development.

        Local is SQLite, a unix socket, and a host that is localhost or a loopback address.

        Raises:
            ConfigurationError: the database is elsewhere, or its address cannot be told from the URL.
        """
        if self._insecure_allow_remote_database or url.get_backend_name() == "sqlite":
            return
        remote = [host for host in _hosts(url) if not _is_local(host)]
        if remote:
            raise ConfigurationError(
                f"the local KMS does not serve a database on another machine: {', '.join(remote)}",
                hint="use AWS KMS, or LocalKms(..., insecure_allow_remote_database=True)",
            )

    def platform_key(self) -> str:
        """Return the ARN of the platform's own key, not a customer's: made at the first call, the same ever after.

        A platform key that was deleted is not replaced, since what it wrapped is gone; using it fails.
        """
        known = self._file.read().platform_key
        if known is not None:
            return known
        with self._file.change() as contents:
            # Another process may have been first.
            if contents.platform_key is None:
                contents.platform_key = self._add_key(contents)
            return contents.platform_key

    # What the owner of the keys does, with AWS's rules.

    def create_key(self) -> str:
        """Make a key and return its ARN."""
        with self._file.change() as contents:
            return self._add_key(contents)

    def disable_key(self, arn: str) -> None:
        """Make a key unusable until `enable_key`."""
        with self._change(arn, "DisableKey", allowed={"Enabled", "Disabled"}) as key:
            key.state = "Disabled"

    def enable_key(self, arn: str) -> None:
        """Make a disabled key usable again."""
        with self._change(arn, "EnableKey", allowed={"Enabled", "Disabled"}) as key:
            key.state = "Enabled"

    def schedule_key_deletion(self, arn: str, pending_days: int = 30) -> datetime:
        """Make a key unusable now and destroy its material after 7 to 30 days; return when, UTC."""
        if not 7 <= pending_days <= 30:
            raise _refused("a key is deleted after 7 to 30 days", "pending_days=7 is the shortest")
        with self._change(arn, "ScheduleKeyDeletion", allowed={"Enabled", "Disabled"}) as key:
            key.state = "PendingDeletion"
            key.deletion_at = self._clock() + pending_days * _DAY
            return datetime.fromtimestamp(key.deletion_at, UTC)

    def cancel_key_deletion(self, arn: str) -> None:
        """Keep a key that was to be deleted. It is disabled afterwards, as in AWS."""
        with self._change(arn, "CancelKeyDeletion", allowed={"PendingDeletion"}) as key:
            key.state, key.deletion_at = "Disabled", None

    def rotate_key(self, arn: str) -> None:
        """Give a key new material; what the older material wrapped keeps opening."""
        with self._change(arn, "RotateKeyOnDemand", allowed={"Enabled"}) as key:
            made = _new_material()
            key.materials = (*key.materials, made)
            key.rotations = (*key.rotations, (self._clock(), made.material_id))

    def set_rotation_period(self, arn: str, days: int | None) -> None:
        """Say how often the key rotates by itself, 90 to 2560 days, or None for never. It is only said, not done."""
        if days is not None and not MIN_ROTATION_DAYS <= days <= MAX_ROTATION_DAYS:
            raise _refused(f"the local key {arn[:200]} rotates every 90 to 2560 days", "365 days is AWS's default")
        operation = "DisableKeyRotation" if days is None else "EnableKeyRotation"
        with self._change(arn, operation, allowed={"Enabled"}) as key:
            key.rotation_days = days

    @contextmanager
    def _change(self, arn: str, operation: str, allowed: Iterable[str]) -> Iterator[LocalKey]:
        self.validate_key(KmsKey(arn))
        with self._file.change() as contents:
            keys = contents.keys
            self._delete_due(keys)
            if arn not in keys:
                raise kms_error("NotFoundException", operation, arn)
            if keys[arn].state not in allowed:
                raise _state_error(keys[arn], operation, arn)
            yield keys[arn]

    def _add_key(self, contents: Contents) -> str:
        arn = f"{_ARN_PREFIX}{uuid.uuid4()}"
        contents.keys[arn] = LocalKey("Enabled", self._clock(), None, (_new_material(),))
        return arn

    def _delete_due(self, keys: dict[str, LocalKey]) -> None:
        for arn in [arn for arn, key in keys.items() if self._is_deleted(key)]:
            del keys[arn]

    def _is_deleted(self, key: LocalKey) -> bool:
        return key.deletion_at is not None and self._clock() >= key.deletion_at

    def _find(self, key: KmsKey, operation: str) -> LocalKey:
        self.validate_key(key)
        found = self._file.read().keys.get(key.arn)
        if found is None or self._is_deleted(found):
            raise kms_error("NotFoundException", operation, key.arn)
        return found

    def _usable(self, key: KmsKey, operation: str) -> LocalKey:
        found = self._find(key, operation)
        if found.state != "Enabled":
            raise _state_error(found, operation, key.arn)
        return found

    def _wrap(self, key: KmsKey, plaintext: bytes, context: Mapping[str, str], operation: str) -> WrappedKey:
        material = self._usable(key, operation).materials[-1]
        header = _BLOB_FORMAT + _uuid_bytes(key.arn) + bytes.fromhex(material.material_id)
        blob = header + seal(material.secret, plaintext, _aad(header, context))
        return WrappedKey(blob, key.arn, material.material_id)

    def _unwrap(self, key: KmsKey, blob: bytes, context: Mapping[str, str], operation: str) -> bytes:
        found = self._usable(key, operation)
        header, sealed = blob[:_HEADER_BYTES], blob[_HEADER_BYTES:]
        if header[:1] != _BLOB_FORMAT or len(header) != _HEADER_BYTES:
            raise kms_error("InvalidCiphertextException", operation, key.arn)
        if header[1:17] != _uuid_bytes(key.arn):
            raise kms_error(self._code_of_other_key(header), operation, key.arn)
        material = next((one for one in found.materials if one.material_id == header[17:].hex()), None)
        if material is not None:
            try:
                return open_(material.secret, sealed, _aad(header, context))
            except OpenError:
                pass
        raise kms_error("InvalidCiphertextException", operation, key.arn)

    def _code_of_other_key(self, header: bytes) -> str:
        """Return what AWS answers for a blob of another key: that it is one, if there is such a key."""
        known = f"{_ARN_PREFIX}{uuid.UUID(bytes=header[1:17])}" in self._file.read().keys
        return "IncorrectKeyException" if known else "InvalidCiphertextException"

    def __reduce__(self) -> NoReturn:
        raise TypeError("LocalKms is not pickled: it holds keys; build one from its path in each process")


def _new_material() -> Material:
    return Material(secrets.token_hex(16), secrets.token_bytes(_KEY_BYTES))


def _uuid_bytes(arn: str) -> bytes:
    return uuid.UUID(arn.removeprefix(_ARN_PREFIX)).bytes


def _aad(header: bytes, context: Mapping[str, str]) -> bytes:
    pairs = [part.encode() for item in sorted(context.items()) for part in item]
    return lp(_LABEL, header, *pairs)


def _state_error(key: LocalKey, operation: str, arn: str) -> KmsError:
    code = "DisabledException" if key.state == "Disabled" and operation != "CancelKeyDeletion" else None
    return kms_error(code or "KMSInvalidStateException", operation, arn)


def _refused(reason: str, hint: str) -> KmsConfigurationError:
    return KmsConfigurationError(reason, code="InvalidAddress", hint=hint)


def _hosts(url: URL) -> list[str]:
    """Return every place that the URL or the driver's environment can send a connection to."""
    named = [url.host or ""]
    for option in ("host", "hostaddr", "unix_socket"):
        for value in url.normalized_query.get(option, ()):
            named += value.split(",")
    # These name the address somewhere else, where it cannot be judged.
    elsewhere = ("service", "dsn", "odbc_connect", "read_default_file", "read_default_group")
    named += [f"the one that {option} names" for option in elsewhere if option in url.query]
    hosts = [host for host in named if host]
    if not hosts and url.get_backend_name() == "postgresql":
        hosts = [os.environ[name] for name in ("PGHOST", "PGHOSTADDR", "PGSERVICE") if os.environ.get(name)]
    return hosts


def _is_local(host: str) -> bool:
    # "/path" is a socket in the file system, "@name" one in Linux's abstract namespace.
    if host == "localhost" or host.startswith(("/", "@")):
        return True
    # PostgreSQL drivers also take "host:port" in the query.
    name = host.rsplit(":", 1)[0] if host.count(":") == 1 else host.strip("[]")
    if name == "localhost":
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
