"""A KMS whose calls are measured: the same answers and errors, and how long each took and for whom it was made."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Final

from ..context import KMS_TENANT
from ..telemetry import Telemetry
from .base import (
    GeneratedKey,
    KmsKey,
    KmsKeyDescription,
    KmsLifecycle,
    KmsProber,
    KmsRotationHistory,
    KmsRotationStatus,
    WrappedKey,
)


class MeasuredKms:
    """A `KmsLifecycle` in front of another one.

    Args:
        kms: The one that is asked.
        telemetry: Who is told.
    """

    def __init__(self, kms: KmsLifecycle, telemetry: Telemetry) -> None:
        self._kms: Final = kms
        self._telemetry: Final = telemetry

    def __repr__(self) -> str:
        return repr(self._kms)

    def generate(self, key: KmsKey, context: Mapping[str, str]) -> GeneratedKey:
        """Measure `KmsProvider.generate`."""
        with self._calling("GenerateDataKey", context):
            return self._kms.generate(key, context)

    def unwrap(self, key: KmsKey, blob: bytes, context: Mapping[str, str]) -> bytes:
        """Measure `KmsProvider.unwrap`."""
        with self._calling("Decrypt", context):
            return self._kms.unwrap(key, blob, context)

    def rewrap(self, source: KmsKey, destination: KmsKey, blob: bytes, context: Mapping[str, str]) -> WrappedKey:
        """Measure `KmsProvider.rewrap`."""
        with self._calling("ReEncrypt", context):
            return self._kms.rewrap(source, destination, blob, context)

    def describe(self, key: KmsKey) -> KmsKeyDescription:
        """Measure `KmsProvider.describe`."""
        with self._calling("DescribeKey"):
            return self._kms.describe(key)

    def validate_key(self, key: KmsKey) -> None:
        """Pass on `KmsProvider.validate_key`, which asks nobody."""
        self._kms.validate_key(key)

    def check_unwrap(self, key: KmsKey, blob: bytes, context: Mapping[str, str]) -> None:
        """Measure `KmsLifecycle.check_unwrap`."""
        with self._calling("Decrypt (dry run)", context):
            self._kms.check_unwrap(key, blob, context)

    def check_rewrap(self, source: KmsKey, destination: KmsKey, blob: bytes, context: Mapping[str, str]) -> None:
        """Measure `KmsLifecycle.check_rewrap`."""
        with self._calling("ReEncrypt (dry run)", context):
            self._kms.check_rewrap(source, destination, blob, context)

    def rotation_period(self, key: KmsKey) -> timedelta | None:
        """Measure `KmsLifecycle.rotation_period`."""
        with self._calling("GetKeyRotationStatus"):
            return self._kms.rotation_period(key)

    def rotation_status(self, key: KmsKey) -> KmsRotationStatus:
        """Measure `KmsLifecycle.rotation_status`."""
        with self._calling("GetKeyRotationStatus"):
            return self._kms.rotation_status(key)

    def rotation_history(self, key: KmsKey) -> KmsRotationHistory:
        """Measure `KmsLifecycle.rotation_history`."""
        with self._calling("ListKeyRotations"):
            return self._kms.rotation_history(key)

    def check_role(self, key: KmsKey) -> None:
        """Measure `KmsLifecycle.check_role`, which makes a call only for a role with an ExternalId."""
        if key.role_arn is None or key.external_id is None:
            self._kms.check_role(key)
            return
        with self._calling("AssumeRole"):
            self._kms.check_role(key)

    def prober(self) -> KmsProber | None:
        """Return who asks what a key's policies allow, not measured: a refusal is what it hopes for. None: nobody."""
        make = getattr(self._kms, "prober", None)
        return make() if make is not None else None

    def _calling(self, operation: str, context: Mapping[str, str] | None = None) -> AbstractContextManager[None]:
        return self._telemetry.calling(operation, context.get(KMS_TENANT) if context is not None else None)
