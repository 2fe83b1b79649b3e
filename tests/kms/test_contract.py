"""What every KMS adapter owes its callers. Runs on the local KMS and on AWS's protocol over HTTP."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import pytest
from tests.support.kms_policy import ALLOW_EVERYTHING
from tests.support.strict_kms import StrictKms

from pii_vault.errors import (
    KmsConfigurationError,
    KmsCorruptError,
    KmsDeniedError,
    KmsError,
)
from pii_vault.kms import KmsKey, KmsLifecycle, KmsProvider
from pii_vault.kms.local import LocalKms

CONTEXT = {"pii-vault:tenant": "0123", "pii-vault:record": "00000001.1"}


class Bench(Protocol):
    """A provider, and what the keys' owner can do."""

    provider: KmsLifecycle

    def key(self) -> KmsKey: ...
    def pair(self) -> tuple[KmsKey, KmsKey]: ...
    def missing(self) -> KmsKey: ...
    def disable(self, key: KmsKey) -> None: ...
    def enable(self, key: KmsKey) -> None: ...
    def schedule_deletion(self, key: KmsKey) -> None: ...
    def cancel_deletion(self, key: KmsKey) -> None: ...
    def rotate(self, key: KmsKey) -> None: ...
    def set_rotation_period(self, key: KmsKey, days: int | None) -> None: ...
    def platform_key(self) -> KmsKey: ...


class LocalBench:
    def __init__(self, folder: Path) -> None:
        self.provider: LocalKms = LocalKms(folder / "keys.json")

    def key(self) -> KmsKey:
        return KmsKey(self.provider.create_key())

    def pair(self) -> tuple[KmsKey, KmsKey]:
        return self.key(), self.key()

    def missing(self) -> KmsKey:
        return KmsKey("arn:local:kms:local:000000000000:key/00000000-0000-4000-8000-000000000000")

    def disable(self, key: KmsKey) -> None:
        self.provider.disable_key(key.arn)

    def enable(self, key: KmsKey) -> None:
        self.provider.enable_key(key.arn)

    def schedule_deletion(self, key: KmsKey) -> None:
        self.provider.schedule_key_deletion(key.arn)

    def cancel_deletion(self, key: KmsKey) -> None:
        self.provider.cancel_key_deletion(key.arn)

    def rotate(self, key: KmsKey) -> None:
        self.provider.rotate_key(key.arn)

    def set_rotation_period(self, key: KmsKey, days: int | None) -> None:
        self.provider.set_rotation_period(key.arn, days)

    def platform_key(self) -> KmsKey:
        return KmsKey(self.provider.platform_key())


class AwsBench:
    def __init__(self, kms: StrictKms) -> None:
        self.kms = kms
        self.provider: KmsLifecycle = kms.provider(attempts=1)

    def key(self) -> KmsKey:
        return self.kms.customer_key()

    def pair(self) -> tuple[KmsKey, KmsKey]:
        """Two keys in two accounts; the first key's role may encrypt under the second."""
        source = self.kms.customer_key(identity_policy=ALLOW_EVERYTHING)
        destination = self.kms.customer_key(account="444455556666")
        assert source.role_arn is not None
        self.kms.allow(destination.arn, source.role_arn, actions=["kms:ReEncryptTo"])
        return source, destination

    def missing(self) -> KmsKey:
        role = self.kms.customer_key()
        arn = "arn:aws:kms:eu-west-1:111122223333:key/00000000-0000-4000-8000-000000000000"
        return KmsKey(arn, role.role_arn, role.external_id)

    def disable(self, key: KmsKey) -> None:
        self.kms.disable(key.arn)

    def enable(self, key: KmsKey) -> None:
        self.kms.enable(key.arn)

    def schedule_deletion(self, key: KmsKey) -> None:
        self.kms.schedule_deletion(key.arn)

    def cancel_deletion(self, key: KmsKey) -> None:
        self.kms.cancel_deletion(key.arn)

    def rotate(self, key: KmsKey) -> None:
        self.kms.rotate(key.arn)

    def set_rotation_period(self, key: KmsKey, days: int | None) -> None:
        self.kms.set_rotation_period(key.arn, days)

    def platform_key(self) -> KmsKey:
        return KmsKey(self.kms.platform_key())


@pytest.fixture(params=["local", "aws"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    if request.param == "local":
        yield LocalBench(tmp_path)
        return
    with StrictKms() as kms:
        yield AwsBench(kms)


def refusal(expected: type[KmsError], call: object) -> KmsError:
    """Call and return the error, which is of exactly this class."""
    with pytest.raises(KmsError) as caught:
        call()  # type: ignore[operator]
    assert type(caught.value) is expected
    return caught.value


def test_it_is_a_provider(bench: Bench) -> None:
    assert isinstance(bench.provider, KmsProvider)
    assert isinstance(bench.provider, KmsLifecycle)


def test_a_generated_key_unwraps_to_itself(bench: Bench) -> None:
    key = bench.key()
    generated = bench.provider.generate(key, CONTEXT)
    assert len(generated.plaintext) == 32
    assert generated.wrapped.key_arn == key.arn
    assert generated.wrapped.key_material_id
    assert generated.plaintext not in generated.wrapped.blob
    assert bench.provider.unwrap(key, generated.wrapped.blob, CONTEXT) == generated.plaintext


def test_two_generated_keys_differ(bench: Bench) -> None:
    key = bench.key()
    first, second = bench.provider.generate(key, CONTEXT), bench.provider.generate(key, CONTEXT)
    assert first.plaintext != second.plaintext
    assert first.wrapped.blob != second.wrapped.blob


def test_the_order_of_the_context_does_not_matter(bench: Bench) -> None:
    key = bench.key()
    generated = bench.provider.generate(key, CONTEXT)
    reordered = dict(reversed(CONTEXT.items()))
    assert bench.provider.unwrap(key, generated.wrapped.blob, reordered) == generated.plaintext


@pytest.mark.parametrize(
    "context",
    [
        {},
        {"pii-vault:tenant": "0123"},
        {**CONTEXT, "more": "x"},
        {**CONTEXT, "pii-vault:tenant": "0124"},
        {"pii-vault:tenant": "00000001.1", "pii-vault:record": "0123"},
        {"pii-vault:tenant": "0123pii-vault:record", "": "00000001.1"},
    ],
)
def test_another_context_does_not_open(bench: Bench, context: dict[str, str]) -> None:
    key = bench.key()
    blob = bench.provider.generate(key, CONTEXT).wrapped.blob
    error = refusal(KmsCorruptError, lambda: bench.provider.unwrap(key, blob, context))
    assert (error.code, error.operation, error.retryable) == ("InvalidCiphertextException", "Decrypt", False)


@pytest.mark.parametrize("position", [0, 20, 40, 60, -1])
def test_a_changed_blob_does_not_open(bench: Bench, position: int) -> None:
    key = bench.key()
    blob = bytearray(bench.provider.generate(key, CONTEXT).wrapped.blob)
    blob[position] ^= 1
    refusal(KmsCorruptError, lambda: bench.provider.unwrap(key, bytes(blob), CONTEXT))


@pytest.mark.parametrize("blob", [b"\x00", b"\x01" * 30, b"x" * 100])
def test_garbage_does_not_open(bench: Bench, blob: bytes) -> None:
    refusal(KmsCorruptError, lambda: bench.provider.unwrap(bench.key(), blob, CONTEXT))


def test_a_blob_of_another_key_is_told_apart(bench: Bench) -> None:
    key, other = bench.key(), bench.key()
    blob = bench.provider.generate(other, CONTEXT).wrapped.blob
    error = refusal(KmsCorruptError, lambda: bench.provider.unwrap(key, blob, CONTEXT))
    assert error.code == "IncorrectKeyException"


def test_a_disabled_key_is_denied_until_it_is_enabled(bench: Bench) -> None:
    key = bench.key()
    generated = bench.provider.generate(key, CONTEXT)
    blob = generated.wrapped.blob
    bench.disable(key)
    error = refusal(KmsDeniedError, lambda: bench.provider.unwrap(key, blob, CONTEXT))
    assert (error.code, error.retryable) == ("DisabledException", False)
    assert key.arn in str(error)
    refusal(KmsDeniedError, lambda: bench.provider.generate(key, CONTEXT))
    refusal(KmsDeniedError, lambda: bench.provider.rewrap(key, key, blob, CONTEXT))
    assert bench.provider.describe(key).state == "Disabled"
    bench.enable(key)
    assert bench.provider.unwrap(key, blob, CONTEXT) == generated.plaintext


def test_a_key_pending_deletion_is_denied_and_comes_back_disabled(bench: Bench) -> None:
    key = bench.key()
    generated = bench.provider.generate(key, CONTEXT)
    blob = generated.wrapped.blob
    bench.schedule_deletion(key)
    error = refusal(KmsDeniedError, lambda: bench.provider.unwrap(key, blob, CONTEXT))
    assert error.code == "KMSInvalidStateException"
    refusal(KmsDeniedError, lambda: bench.provider.generate(key, CONTEXT))
    assert bench.provider.describe(key).state == "PendingDeletion"
    bench.cancel_deletion(key)
    refusal(KmsDeniedError, lambda: bench.provider.unwrap(key, blob, CONTEXT))
    bench.enable(key)
    assert bench.provider.unwrap(key, blob, CONTEXT) == generated.plaintext


def test_a_missing_key_is_gone_for_a_blob_and_mistyped_for_the_rest(bench: Bench) -> None:
    key, blob = bench.missing(), bench.provider.generate(bench.key(), CONTEXT).wrapped.blob
    error = refusal(KmsDeniedError, lambda: bench.provider.unwrap(key, blob, CONTEXT))
    assert error.code == "NotFoundException"
    refusal(KmsDeniedError, lambda: bench.provider.rewrap(key, key, blob, CONTEXT))
    refusal(KmsConfigurationError, lambda: bench.provider.generate(key, CONTEXT))
    refusal(KmsConfigurationError, lambda: bench.provider.describe(key))


def test_a_rewrapped_blob_opens_only_under_the_new_key(bench: Bench) -> None:
    source, destination = bench.pair()
    generated = bench.provider.generate(source, CONTEXT)
    wrapped = bench.provider.rewrap(source, destination, generated.wrapped.blob, CONTEXT)
    assert wrapped.key_arn == destination.arn
    assert bench.provider.unwrap(destination, wrapped.blob, CONTEXT) == generated.plaintext
    refusal(KmsCorruptError, lambda: bench.provider.unwrap(source, wrapped.blob, CONTEXT))
    refusal(KmsCorruptError, lambda: bench.provider.unwrap(destination, wrapped.blob, {}))


def test_a_rewrap_keeps_the_context_and_checks_it(bench: Bench) -> None:
    source, destination = bench.pair()
    blob = bench.provider.generate(source, CONTEXT).wrapped.blob
    refusal(KmsCorruptError, lambda: bench.provider.rewrap(source, destination, blob, {"other": "context"}))


def test_a_rewrap_to_a_disabled_key_is_denied(bench: Bench) -> None:
    source, destination = bench.pair()
    blob = bench.provider.generate(source, CONTEXT).wrapped.blob
    bench.disable(destination)
    refusal(KmsDeniedError, lambda: bench.provider.rewrap(source, destination, blob, CONTEXT))


def test_old_blobs_open_after_the_key_was_rotated(bench: Bench) -> None:
    key = bench.key()
    old = bench.provider.generate(key, CONTEXT)
    bench.rotate(key)
    new = bench.provider.generate(key, CONTEXT)
    assert old.wrapped.key_material_id != new.wrapped.key_material_id
    assert bench.provider.unwrap(key, old.wrapped.blob, CONTEXT) == old.plaintext
    assert bench.provider.unwrap(key, new.wrapped.blob, CONTEXT) == new.plaintext


def test_describe_names_the_material_that_wraps_now(bench: Bench) -> None:
    key = bench.key()
    before = bench.provider.describe(key).key_material_id
    assert bench.provider.generate(key, CONTEXT).wrapped.key_material_id == before
    bench.rotate(key)
    after = bench.provider.describe(key).key_material_id
    assert bench.provider.generate(key, CONTEXT).wrapped.key_material_id == after != before


def test_a_blob_that_would_unwrap_passes_the_check_before_and_after_a_rotation(bench: Bench) -> None:
    key = bench.key()
    blob = bench.provider.generate(key, CONTEXT).wrapped.blob
    for _ in range(2):
        bench.provider.check_unwrap(key, blob, CONTEXT)
        bench.rotate(key)


def test_the_check_refuses_what_unwrap_refuses(bench: Bench) -> None:
    key, other, missing = bench.key(), bench.key(), bench.missing()
    blob = bench.provider.generate(key, CONTEXT).wrapped.blob
    changed = blob[:-1] + bytes([blob[-1] ^ 1])
    closed, going = bench.key(), bench.key()
    blobs = [bench.provider.generate(one, CONTEXT).wrapped.blob for one in (closed, going)]
    bench.disable(closed)
    bench.schedule_deletion(going)
    for case in (
        (key, blob, {}),
        (key, blob, {**CONTEXT, "more": "x"}),
        (key, changed, CONTEXT),
        (key, b"x" * 100, CONTEXT),
        (key, b"", CONTEXT),
        (other, blob, CONTEXT),
        (missing, blob, CONTEXT),
        (closed, blobs[0], CONTEXT),
        (going, blobs[1], CONTEXT),
    ):
        with pytest.raises(KmsError) as real:
            bench.provider.unwrap(*case)
        error = refusal(type(real.value), lambda case=case: bench.provider.check_unwrap(*case))
        assert (error.code, error.operation, str(error)) == (real.value.code, "Decrypt", str(real.value))


def test_a_re_wrap_that_would_work_passes_its_check_and_wraps_nothing(bench: Bench) -> None:
    source, destination = bench.pair()
    blob = bench.provider.generate(source, CONTEXT).wrapped.blob
    for to in (destination, source):
        bench.provider.check_rewrap(source, to, blob, CONTEXT)
    assert bench.provider.unwrap(source, blob, CONTEXT)


def test_the_check_refuses_what_a_re_wrap_refuses(bench: Bench) -> None:
    source, destination = bench.pair()
    blob = bench.provider.generate(source, CONTEXT).wrapped.blob
    changed = blob[:-1] + bytes([blob[-1] ^ 1])

    def refused_alike(*case: Any) -> None:
        with pytest.raises(KmsError) as real:
            bench.provider.rewrap(*case)
        error = refusal(type(real.value), lambda: bench.provider.check_rewrap(*case))
        assert (error.code, error.operation, str(error)) == (real.value.code, "ReEncrypt", str(real.value))

    for case in ((source, destination, changed, CONTEXT), (source, destination, blob, {}), (destination, source, blob)):
        refused_alike(*case, *([CONTEXT] if len(case) == 3 else []))
    bench.disable(destination)
    refused_alike(source, destination, blob, CONTEXT)
    bench.disable(source)
    refused_alike(source, source, blob, CONTEXT)


def test_a_key_rotates_as_often_as_its_owner_says(bench: Bench) -> None:
    key = bench.key()
    assert bench.provider.rotation_period(key) is None
    for days in (90, 365, 2560):
        bench.set_rotation_period(key, days)
        assert bench.provider.rotation_period(key) == timedelta(days=days)
    bench.rotate(key)
    assert bench.provider.rotation_period(key) == timedelta(days=2560)
    bench.set_rotation_period(key, None)
    assert bench.provider.rotation_period(key) is None


def test_a_disabled_key_keeps_its_rotation_period_and_one_that_goes_has_none(bench: Bench) -> None:
    key = bench.key()
    bench.set_rotation_period(key, 180)
    bench.disable(key)
    assert bench.provider.rotation_period(key) == timedelta(days=180)
    bench.schedule_deletion(key)
    assert bench.provider.rotation_period(key) is None
    bench.cancel_deletion(key)
    assert bench.provider.rotation_period(key) == timedelta(days=180)


def test_a_missing_key_has_no_rotation_period_but_an_error(bench: Bench) -> None:
    error = refusal(KmsConfigurationError, lambda: bench.provider.rotation_period(bench.missing()))
    assert (error.code, error.operation) == ("NotFoundException", "GetKeyRotationStatus")


def test_a_new_wrap_is_proven_by_wrapping_it_again_under_its_own_key(bench: Bench) -> None:
    source, destination = bench.pair()
    generated = bench.provider.generate(source, CONTEXT)
    wrapped = bench.provider.rewrap(source, destination, generated.wrapped.blob, CONTEXT)
    proof = bench.provider.rewrap(destination, destination, wrapped.blob, CONTEXT)
    assert proof.key_arn == destination.arn
    assert bench.provider.unwrap(destination, proof.blob, CONTEXT) == generated.plaintext
    old = generated.wrapped.blob
    refusal(KmsCorruptError, lambda: bench.provider.rewrap(destination, destination, wrapped.blob, {}))
    refusal(KmsCorruptError, lambda: bench.provider.rewrap(destination, destination, old, CONTEXT))


def test_the_platform_key_is_used_without_a_role(bench: Bench) -> None:
    key = bench.platform_key()
    assert bench.platform_key() == key
    generated = bench.provider.generate(key, CONTEXT)
    assert bench.provider.unwrap(key, generated.wrapped.blob, CONTEXT) == generated.plaintext
    assert bench.provider.describe(key).state == "Enabled"


def test_a_role_that_asks_for_its_external_id_passes_the_check_in_every_state_of_its_key(bench: Bench) -> None:
    for key in (bench.key(), *bench.pair(), bench.platform_key(), bench.missing()):
        bench.provider.check_role(key)
    closed = bench.key()
    bench.disable(closed)
    bench.provider.check_role(closed)


def test_describe_says_what_the_key_is(bench: Bench) -> None:
    key = bench.key()
    described = bench.provider.describe(key)
    assert described.arn == key.arn
    assert described.account == key.arn.split(":")[4]
    assert described.region == key.arn.split(":")[3]
    assert (described.state, described.usage) == ("Enabled", "ENCRYPT_DECRYPT")
    assert described.spec == "SYMMETRIC_DEFAULT"
    assert described.created_at is not None
    assert described.created_at.tzinfo is not None


@pytest.mark.parametrize("arn", ["", "alias/x", "arn:aws:s3:::bucket", "1234abcd-12ab-34cd-56ef-1234567890ab"])
def test_an_address_of_something_else_is_refused_before_any_call(bench: Bench, arn: str) -> None:
    refusal(KmsConfigurationError, lambda: bench.provider.validate_key(KmsKey(arn)))
    refusal(KmsConfigurationError, lambda: bench.provider.generate(KmsKey(arn), CONTEXT))
    refusal(KmsConfigurationError, lambda: bench.provider.unwrap(KmsKey(arn), b"x", CONTEXT))
    refusal(KmsConfigurationError, lambda: bench.provider.rewrap(KmsKey(arn), KmsKey(arn), b"x", CONTEXT))
    refusal(KmsConfigurationError, lambda: bench.provider.describe(KmsKey(arn)))
    refusal(KmsConfigurationError, lambda: bench.provider.check_unwrap(KmsKey(arn), b"x", CONTEXT))
    refusal(KmsConfigurationError, lambda: bench.provider.rotation_period(KmsKey(arn)))


def test_no_representation_shows_a_key(bench: Bench) -> None:
    generated = bench.provider.generate(bench.key(), CONTEXT)
    assert repr(generated.plaintext) not in repr(generated)
    assert generated.plaintext.hex() not in repr(bench.provider)
