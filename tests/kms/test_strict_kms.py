"""The strict KMS against AWS's documentation: a test double that forgives would prove nothing."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3.session
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError
from tests.support.kms_policy import ALLOW_EVERYTHING
from tests.support.strict_kms import VENDOR, FaultRule, StrictKms

from pii_vault.kms import KmsKey

CONTEXT = {"pii-vault:app": "a", "pii-vault:tenant": "t"}
ACCOUNT = "111122223333"
ROOT = f"arn:aws:iam::{ACCOUNT}:root"


def client(kms: StrictKms, service: str = "kms", *, region: str = "eu-west-1", **credentials: str) -> Any:
    """A plain boto3 client, so that the double is not judged by the code that it is to judge."""
    if not credentials:
        found = kms.session().get_credentials()
        credentials = {"aws_access_key_id": found.access_key, "aws_secret_access_key": found.secret_key}
    config = Config(retries={"total_max_attempts": 1}, read_timeout=5)
    session = boto3.session.Session()
    return session.client(service, region_name=region, endpoint_url=kms.endpoint_url, config=config, **credentials)


def assumed(kms: StrictKms, key: KmsKey, **options: Any) -> Any:
    """A KMS client with the credentials of the key's role."""
    sts = client(kms, "sts")
    external = {"ExternalId": key.external_id} if key.external_id else {}
    answer = sts.assume_role(RoleArn=key.role_arn, RoleSessionName="test", **external, **options)["Credentials"]
    return client(
        kms,
        aws_access_key_id=answer["AccessKeyId"],
        aws_secret_access_key=answer["SecretAccessKey"],
        aws_session_token=answer["SessionToken"],
    )


def refused(code: str, call: Callable[[], object], *, status: int | None = None, text: str = "") -> None:
    with pytest.raises(ClientError) as caught:
        call()
    error = caught.value.response
    assert error["Error"]["Code"] == code
    assert text in error["Error"]["Message"]
    if status is not None:
        assert error["ResponseMetadata"]["HTTPStatusCode"] == status


def vendor_key(kms: StrictKms, **options: Any) -> str:
    arn = kms.create_key(ACCOUNT)
    kms.allow(arn, VENDOR, **options)
    return arn


def data_key(kms: Any, arn: str, context: dict[str, str] | None = None, **options: Any) -> bytes:
    blob: bytes = kms.generate_data_key(
        KeyId=arn, NumberOfBytes=32, EncryptionContext=CONTEXT if context is None else context, **options
    )["CiphertextBlob"]
    return blob


# Key states: the table "Key states of AWS KMS keys".


@pytest.mark.parametrize(
    ("state", "code", "text"),
    [
        ("Disabled", "DisabledException", "is disabled."),
        ("PendingDeletion", "KMSInvalidStateException", "is pending deletion."),
        ("PendingImport", "KMSInvalidStateException", "is pending import."),
        ("Unavailable", "KMSInvalidStateException", "is unavailable."),
        ("Creating", "KMSInvalidStateException", "is creating."),
        ("Updating", "KMSInvalidStateException", "is updating."),
    ],
)
def test_a_key_that_is_not_enabled_does_no_cryptography(
    state: str, code: str, text: str, strict_kms: StrictKms
) -> None:
    kms, arn = client(strict_kms), vendor_key(strict_kms)
    other = vendor_key(strict_kms)
    blob, foreign = data_key(kms, arn), data_key(kms, other)
    strict_kms.set_state(arn, state)

    def re_encrypt(blob: bytes, source: str, destination: str) -> object:
        return kms.re_encrypt(
            CiphertextBlob=blob,
            SourceKeyId=source,
            DestinationKeyId=destination,
            SourceEncryptionContext=CONTEXT,
            DestinationEncryptionContext=CONTEXT,
        )

    expected = f"{arn} {text}"
    refused(code, lambda: data_key(kms, arn), status=400, text=expected)
    refused(code, lambda: kms.decrypt(CiphertextBlob=blob, KeyId=arn, EncryptionContext=CONTEXT), text=expected)
    refused(code, lambda: kms.decrypt(CiphertextBlob=blob, EncryptionContext=CONTEXT), text=expected)
    refused(code, lambda: re_encrypt(blob, arn, other), text=expected)
    refused(code, lambda: re_encrypt(foreign, other, arn), text=expected)
    assert kms.describe_key(KeyId=arn)["KeyMetadata"]["KeyState"] == state
    assert kms.describe_key(KeyId=arn)["KeyMetadata"]["Enabled"] is False


def test_states_change_as_the_owner_says(strict_kms: StrictKms) -> None:
    arn = strict_kms.create_key()
    strict_kms.disable(arn)
    assert strict_kms.state(arn) == "Disabled"
    strict_kms.enable(arn)
    assert strict_kms.state(arn) == "Enabled"
    strict_kms.schedule_deletion(arn)
    assert strict_kms.state(arn) == "PendingDeletion"
    strict_kms.cancel_deletion(arn)
    assert strict_kms.state(arn) == "Disabled"


def test_an_owner_manages_over_http(strict_kms: StrictKms) -> None:
    admin = f"arn:aws:iam::{ACCOUNT}:user/admin"
    found = strict_kms.add_identity(admin, ALLOW_EVERYTHING)
    kms = client(strict_kms, aws_access_key_id=found.access_key, aws_secret_access_key=found.secret_key)
    arn = kms.create_key()["KeyMetadata"]["Arn"]
    kms.disable_key(KeyId=arn)
    refused("DisabledException", lambda: kms.enable_key_rotation(KeyId=arn))
    kms.enable_key(KeyId=arn)
    assert kms.get_key_rotation_status(KeyId=arn)["KeyRotationEnabled"] is False
    kms.enable_key_rotation(KeyId=arn, RotationPeriodInDays=180)
    status = kms.get_key_rotation_status(KeyId=arn)
    assert (status["KeyRotationEnabled"], status["RotationPeriodInDays"]) == (True, 180)
    assert status["NextRotationDate"].timestamp() == pytest.approx(time.time() + 180 * 86_400, abs=60)
    refused("ValidationException", lambda: kms.enable_key_rotation(KeyId=arn, RotationPeriodInDays=2561))
    policy = json.loads(kms.get_key_policy(KeyId=arn)["Policy"])
    assert policy["Statement"][0]["Principal"] == {"AWS": ROOT}
    refused("KMSInvalidStateException", lambda: kms.cancel_key_deletion(KeyId=arn))
    kms.schedule_key_deletion(KeyId=arn, PendingWindowInDays=7)
    for change in (kms.enable_key, kms.disable_key, kms.schedule_key_deletion, kms.rotate_key_on_demand):
        refused("KMSInvalidStateException", lambda change=change: change(KeyId=arn), text="pending deletion")
    kms.cancel_key_deletion(KeyId=arn)
    assert strict_kms.state(arn) == "Disabled"


def test_rotation_changes_the_key_material_and_nothing_else(strict_kms: StrictKms) -> None:
    kms, arn = client(strict_kms), vendor_key(strict_kms)
    old = kms.generate_data_key(KeyId=arn, NumberOfBytes=32)
    strict_kms.rotate(arn)
    new = kms.generate_data_key(KeyId=arn, NumberOfBytes=32)
    assert old["KeyMaterialId"] != new["KeyMaterialId"]
    for made in (old, new):
        opened = kms.decrypt(CiphertextBlob=made["CiphertextBlob"], KeyId=arn)
        assert opened["Plaintext"] == made["Plaintext"]
        assert opened["KeyMaterialId"] == made["KeyMaterialId"]


def test_a_description_names_the_key_material_of_now(strict_kms: StrictKms) -> None:
    kms, arn = client(strict_kms), vendor_key(strict_kms)

    def described() -> str:
        material: str = kms.describe_key(KeyId=arn)["KeyMetadata"]["CurrentKeyMaterialId"]
        return material

    before = described()
    assert kms.generate_data_key(KeyId=arn, NumberOfBytes=32)["KeyMaterialId"] == described() == before
    strict_kms.rotate(arn)
    assert kms.generate_data_key(KeyId=arn, NumberOfBytes=32)["KeyMaterialId"] == described() != before


def test_the_rotation_status_is_read_through_a_role_and_across_accounts(strict_kms: StrictKms) -> None:
    key, own = strict_kms.customer_key(), client(strict_kms)
    role = assumed(strict_kms, key)
    strict_kms.set_rotation_period(key.arn, 90)
    assert role.get_key_rotation_status(KeyId=key.arn)["RotationPeriodInDays"] == 90
    refused("AccessDeniedException", lambda: own.get_key_rotation_status(KeyId=key.arn))
    strict_kms.allow(key.arn, VENDOR, actions=["kms:GetKeyRotationStatus"], describe=False)
    assert own.get_key_rotation_status(KeyId=key.arn)["RotationPeriodInDays"] == 90
    # It carries no encryption context, so a condition on that denies it.
    guarded = strict_kms.create_key()
    strict_kms.allow(guarded, VENDOR, actions=["kms:*"], context=CONTEXT, describe=False)
    refused("AccessDeniedException", lambda: own.get_key_rotation_status(KeyId=guarded))


def test_rotation_rests_while_a_key_waits_for_its_deletion(strict_kms: StrictKms) -> None:
    kms, arn = client(strict_kms), vendor_key(strict_kms)

    def rotates() -> bool:
        enabled: bool = kms.get_key_rotation_status(KeyId=arn)["KeyRotationEnabled"]
        return enabled

    strict_kms.set_rotation_period(arn, 365)
    strict_kms.disable(arn)
    assert rotates()
    strict_kms.schedule_deletion(arn)
    assert not rotates()
    strict_kms.cancel_deletion(arn)
    assert rotates()
    strict_kms.enable(arn)
    strict_kms.set_rotation_period(arn, None)
    assert not rotates()


def test_a_key_with_imported_material_does_not_rotate_by_itself(strict_kms: StrictKms) -> None:
    kms, arn = client(strict_kms), strict_kms.create_key(origin="EXTERNAL")
    strict_kms.allow(arn, VENDOR)
    refused("KMSInvalidStateException", lambda: data_key(kms, arn), text="pending import")
    strict_kms.set_state(arn, "Enabled")
    data_key(kms, arn)
    refused("UnsupportedOperationException", lambda: kms.get_key_rotation_status(KeyId=arn), status=400)


# Ciphertexts.


def test_a_wrong_key_and_a_wrong_blob_are_told_apart(strict_kms: StrictKms) -> None:
    kms, arn, other = client(strict_kms), vendor_key(strict_kms), vendor_key(strict_kms)
    blob = data_key(kms, arn)
    refused("IncorrectKeyException", lambda: kms.decrypt(CiphertextBlob=blob, KeyId=other), status=400)
    refused("InvalidCiphertextException", lambda: kms.decrypt(CiphertextBlob=b"x" * 90, KeyId=arn), status=400)
    refused("InvalidCiphertextException", lambda: kms.decrypt(CiphertextBlob=b"x" * 90), status=400)
    for context in ({}, {**CONTEXT, "pii-vault:tenant": "u"}):
        refused(
            "InvalidCiphertextException",
            lambda context=context: kms.decrypt(CiphertextBlob=blob, KeyId=arn, EncryptionContext=context),
        )
    changed = blob[:-1] + bytes([blob[-1] ^ 1])
    refused(
        "InvalidCiphertextException",
        lambda: kms.decrypt(CiphertextBlob=changed, KeyId=arn, EncryptionContext=CONTEXT),
    )


def test_decrypt_without_a_key_takes_any_that_the_caller_may_use(strict_kms: StrictKms) -> None:
    """Why the adapter always names the key."""
    kms, arn = client(strict_kms), vendor_key(strict_kms)
    blob = data_key(kms, arn)
    assert kms.decrypt(CiphertextBlob=blob, EncryptionContext=CONTEXT)["KeyId"] == arn


def test_a_dry_run_that_would_succeed_says_so(strict_kms: StrictKms) -> None:
    kms, arn = client(strict_kms), vendor_key(strict_kms, context=CONTEXT)
    blob = data_key(kms, arn)
    code = "DryRunOperationException"
    refused(code, lambda: data_key(kms, arn, DryRun=True), status=412)
    decrypt = {"CiphertextBlob": blob, "KeyId": arn, "DryRun": True}
    refused(code, lambda: kms.decrypt(**decrypt, EncryptionContext=CONTEXT))
    refused("AccessDeniedException", lambda: kms.decrypt(**decrypt, EncryptionContext={}))
    refused(
        code,
        lambda: kms.re_encrypt(
            CiphertextBlob=blob,
            SourceKeyId=arn,
            DestinationKeyId=arn,
            SourceEncryptionContext=CONTEXT,
            DestinationEncryptionContext=CONTEXT,
            DryRun=True,
        ),
    )
    strict_kms.disable(arn)
    refused("DisabledException", lambda: data_key(kms, arn, DryRun=True))


def test_a_dry_run_looks_at_blob_and_context_as_a_real_call_does(strict_kms: StrictKms) -> None:
    """AWS leaves that out only when it is told to: IGNORE_CIPHERTEXT."""
    kms, arn, other = client(strict_kms), vendor_key(strict_kms), vendor_key(strict_kms)
    blob = data_key(kms, arn)
    changed = blob[:-1] + bytes([blob[-1] ^ 1])

    def dry_run(key: str, blob: bytes, context: dict[str, str]) -> object:
        return kms.decrypt(CiphertextBlob=blob, KeyId=key, EncryptionContext=context, DryRun=True)

    refused("DryRunOperationException", lambda: dry_run(arn, blob, CONTEXT))
    refused("InvalidCiphertextException", lambda: dry_run(arn, changed, CONTEXT))
    refused("InvalidCiphertextException", lambda: dry_run(arn, blob, {**CONTEXT, "pii-vault:tenant": "u"}))
    refused("IncorrectKeyException", lambda: dry_run(other, blob, CONTEXT))


# Who may.


def test_nobody_may_use_a_new_key(strict_kms: StrictKms) -> None:
    kms, arn = client(strict_kms), strict_kms.create_key()
    refused("AccessDeniedException", lambda: data_key(kms, arn), status=400, text="kms:GenerateDataKey")
    refused("AccessDeniedException", lambda: kms.describe_key(KeyId=arn))


def test_a_key_that_does_not_exist_is_not_found_at_home_and_denied_abroad(strict_kms: StrictKms) -> None:
    kms, key_id = client(strict_kms), "00000000-0000-4000-8000-000000000000"
    home = f"arn:aws:kms:eu-west-1:999900001111:key/{key_id}"
    refused("NotFoundException", lambda: data_key(kms, home), status=400)
    abroad = f"arn:aws:kms:eu-west-1:{ACCOUNT}:key/{key_id}"
    refused("AccessDeniedException", lambda: data_key(kms, abroad), status=400)


def test_a_key_is_found_only_in_its_region(strict_kms: StrictKms) -> None:
    arn = vendor_key(strict_kms)
    refused("NotFoundException", lambda: data_key(client(strict_kms, region="us-east-1"), arn), text="Invalid arn")


def test_only_the_named_actions_are_allowed(strict_kms: StrictKms) -> None:
    kms, arn = client(strict_kms), strict_kms.create_key()
    strict_kms.allow(arn, VENDOR, actions=["kms:GenerateDataKey"], describe=False)
    blob = data_key(kms, arn)
    refused("AccessDeniedException", lambda: kms.decrypt(CiphertextBlob=blob, KeyId=arn, EncryptionContext=CONTEXT))
    refused("AccessDeniedException", lambda: kms.describe_key(KeyId=arn))


def test_reencrypt_needs_both_sides(strict_kms: StrictKms) -> None:
    kms, source, destination = client(strict_kms), strict_kms.create_key(), strict_kms.create_key("444455556666")
    strict_kms.allow(source, VENDOR, actions=["kms:GenerateDataKey"])
    blob = data_key(kms, source)

    def re_encrypt() -> Any:
        return kms.re_encrypt(
            CiphertextBlob=blob,
            SourceKeyId=source,
            DestinationKeyId=destination,
            SourceEncryptionContext=CONTEXT,
            DestinationEncryptionContext=CONTEXT,
        )

    refused("AccessDeniedException", re_encrypt, text="kms:ReEncryptFrom")
    strict_kms.allow(source, VENDOR, actions=["kms:ReEncryptFrom"])
    refused("AccessDeniedException", re_encrypt, text="kms:ReEncryptTo")
    strict_kms.allow(destination, VENDOR, actions=["kms:ReEncryptTo"])
    answer = re_encrypt()
    assert (answer["SourceKeyId"], answer["KeyId"]) == (source, destination)


def test_reencrypt_can_be_limited_to_one_key(strict_kms: StrictKms) -> None:
    kms, arn, other = client(strict_kms), strict_kms.create_key(), strict_kms.create_key()
    condition = {"Bool": {"kms:ReEncryptOnSameKey": True}}
    statements = [
        {"Effect": "Allow", "Principal": {"AWS": VENDOR}, "Action": "kms:GenerateDataKey"},
        {"Effect": "Allow", "Principal": {"AWS": VENDOR}, "Action": "kms:ReEncrypt*", "Condition": condition},
    ]
    for key in (arn, other):
        strict_kms.put_key_policy(key, {"Statement": statements})
    blob = data_key(kms, arn)
    sent = {"CiphertextBlob": blob, "SourceEncryptionContext": CONTEXT, "DestinationEncryptionContext": CONTEXT}
    assert kms.re_encrypt(**sent, SourceKeyId=arn, DestinationKeyId=arn)["KeyId"] == arn
    refused("AccessDeniedException", lambda: kms.re_encrypt(**sent, SourceKeyId=arn, DestinationKeyId=other))


def test_the_encryption_context_is_a_condition(strict_kms: StrictKms) -> None:
    kms = client(strict_kms)
    arn = vendor_key(strict_kms, context={"pii-vault:tenant": "t"})
    data_key(kms, arn)
    for context in ({}, {"pii-vault:tenant": "T"}, {"pii-vault:tenant": "u"}, {"pii-vault:app": "t"}):
        refused("AccessDeniedException", lambda context=context: data_key(kms, arn, context))
    # Looking at a key carries no context, so it has a statement of its own.
    kms.describe_key(KeyId=arn)


def test_one_of_several_context_values_can_be_demanded(strict_kms: StrictKms) -> None:
    kms = client(strict_kms)
    arn = vendor_key(strict_kms, context={"pii-vault:purpose": ["audit", "kek"]})
    for purpose in ("audit", "kek"):
        context = {"pii-vault:purpose": purpose}
        blob = data_key(kms, arn, context)
        kms.decrypt(CiphertextBlob=blob, KeyId=arn, EncryptionContext=context)
    refused("AccessDeniedException", lambda: data_key(kms, arn, {"pii-vault:purpose": "data"}))
    refused(
        "AccessDeniedException",
        lambda: kms.decrypt(CiphertextBlob=blob, KeyId=arn, EncryptionContext={"pii-vault:purpose": "data"}),
    )


def test_the_platform_key_is_ours_alone_and_stays(strict_kms: StrictKms) -> None:
    arn, key = strict_kms.platform_key(), strict_kms.customer_key()
    assert strict_kms.platform_key() == arn
    assert arn.split(":")[4] == VENDOR.split(":")[4]
    data_key(client(strict_kms), arn)
    refused("AccessDeniedException", lambda: data_key(assumed(strict_kms, key), arn))


def test_the_list_of_context_keys_can_be_closed(strict_kms: StrictKms) -> None:
    kms = client(strict_kms)
    arn = vendor_key(strict_kms, context_keys=["pii-vault:app", "pii-vault:tenant"])
    data_key(kms, arn)
    data_key(kms, arn, {"pii-vault:app": "a"})
    refused("AccessDeniedException", lambda: data_key(kms, arn, {**CONTEXT, "more": "x"}))
    # ForAllValues is true for nothing at all: only "Null" refuses an empty context.
    refused("AccessDeniedException", lambda: data_key(kms, arn, {}))


def test_for_all_values_alone_lets_an_empty_context_through(strict_kms: StrictKms) -> None:
    kms, arn = client(strict_kms), strict_kms.create_key()
    condition = {"ForAllValues:StringEquals": {"kms:EncryptionContextKeys": ["pii-vault:tenant"]}}
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": VENDOR},
        "Action": "kms:GenerateDataKey*",
        "Resource": "*",
        "Condition": condition,
    }
    strict_kms.put_key_policy(arn, json.dumps({"Version": "2012-10-17", "Statement": statement}))
    data_key(kms, arn, {})


def test_a_deny_wins(strict_kms: StrictKms) -> None:
    kms, arn = client(strict_kms), vendor_key(strict_kms)
    data_key(kms, arn)
    strict_kms.deny_all(arn)
    refused("AccessDeniedException", lambda: data_key(kms, arn))
    refused("AccessDeniedException", lambda: kms.describe_key(KeyId=arn))


def test_across_accounts_both_sides_must_allow(strict_kms: StrictKms) -> None:
    poor = strict_kms.add_identity("arn:aws:iam::999900001111:user/poor")
    kms = client(strict_kms, aws_access_key_id=poor.access_key, aws_secret_access_key=poor.secret_key)
    arn = strict_kms.create_key()
    strict_kms.allow(arn, "arn:aws:iam::999900001111:user/poor")
    refused("AccessDeniedException", lambda: data_key(kms, arn))


def test_a_root_statement_leaves_it_to_identity_policies(strict_kms: StrictKms) -> None:
    arn = strict_kms.create_key(ACCOUNT)
    strict_kms.allow(arn, ROOT)
    poor = strict_kms.add_identity(f"arn:aws:iam::{ACCOUNT}:user/poor")
    rich = strict_kms.add_identity(f"arn:aws:iam::{ACCOUNT}:user/rich", ALLOW_EVERYTHING)
    for who, allowed in ((poor, False), (rich, True)):
        kms = client(strict_kms, aws_access_key_id=who.access_key, aws_secret_access_key=who.secret_key)
        if allowed:
            data_key(kms, arn)
        else:
            refused("AccessDeniedException", lambda kms=kms: data_key(kms, arn))


def test_management_is_not_possible_across_accounts(strict_kms: StrictKms) -> None:
    kms, arn = client(strict_kms), strict_kms.create_key()
    strict_kms.allow(arn, VENDOR, actions=["kms:*"])
    for change in (kms.disable_key, kms.enable_key_rotation, kms.rotate_key_on_demand, kms.schedule_key_deletion):
        refused("AccessDeniedException", lambda change=change: change(KeyId=arn))
    assert kms.get_key_rotation_status(KeyId=arn)["KeyRotationEnabled"] is False


@pytest.mark.parametrize(
    "statement",
    [
        {"NotAction": "kms:Decrypt"},
        {"Condition": {"NumericEquals": {"aws:x": "1"}}},
        {"Principal": {"Federated": "x"}},
    ],
)
def test_a_policy_that_is_not_understood_allows_nothing(statement: dict[str, Any], strict_kms: StrictKms) -> None:
    arn = strict_kms.create_key()
    whole = {"Effect": "Allow", "Principal": {"AWS": VENDOR}, "Action": "kms:*", "Resource": "*", **statement}
    strict_kms.put_key_policy(arn, {"Statement": [whole]})
    with pytest.raises((ConnectionClosedError, ClientError)):
        data_key(client(strict_kms), arn)


# Roles.


def test_an_assumed_role_is_the_principal(strict_kms: StrictKms) -> None:
    key = strict_kms.customer_key()
    data_key(assumed(strict_kms, key), key.arn)
    call = strict_kms.calls[-1]
    assert call.principal.startswith(f"arn:aws:sts::{ACCOUNT}:assumed-role/pii-vault-")
    assert call.principal.endswith("/test")
    # We ourselves are not named by the key policy.
    refused("AccessDeniedException", lambda: data_key(client(strict_kms), key.arn))


@pytest.mark.parametrize("external_id", [None, "wrong-id", "RANDOM-external-id"])
def test_a_role_demands_its_external_id(external_id: str | None, strict_kms: StrictKms) -> None:
    key = strict_kms.customer_key(external_id="random-external-id")
    wrong = KmsKey(key.arn, key.role_arn, external_id)
    refused("AccessDenied", lambda: assumed(strict_kms, wrong), status=403, text="sts:AssumeRole")


def test_a_role_that_is_not_there_is_denied(strict_kms: StrictKms) -> None:
    missing = KmsKey("x", f"arn:aws:iam::{ACCOUNT}:role/missing", "external-id")
    refused("AccessDenied", lambda: assumed(strict_kms, missing), status=403)


def test_a_role_trusts_those_it_names(strict_kms: StrictKms) -> None:
    key = strict_kms.customer_key()
    assert key.role_arn is not None
    strict_kms.register_role(key.role_arn, external_id=key.external_id, trusts=["arn:aws:iam::1:user/x"])
    refused("AccessDenied", lambda: assumed(strict_kms, key), status=403)


def test_a_session_is_900_seconds_or_more(strict_kms: StrictKms) -> None:
    key = strict_kms.customer_key()
    refused("ValidationError", lambda: assumed(strict_kms, key, DurationSeconds=3601), status=400)
    assumed(strict_kms, key, DurationSeconds=900)


def test_credentials_end(strict_kms: StrictKms) -> None:
    key = strict_kms.customer_key()
    kms = assumed(strict_kms, key, DurationSeconds=900)
    strict_kms.pass_time(600)
    data_key(kms, key.arn)
    strict_kms.pass_time(300)
    refused("ExpiredTokenException", lambda: data_key(kms, key.arn), status=400)


def test_credentials_that_were_not_handed_out_are_refused(strict_kms: StrictKms) -> None:
    key = strict_kms.customer_key()
    kms = client(strict_kms, aws_access_key_id="AKIAUNKNOWN", aws_secret_access_key="x")
    refused("UnrecognizedClientException", lambda: data_key(kms, key.arn))
    assumed(strict_kms, key)
    stolen = next(one for one in strict_kms._state.credentials.values() if one.role)
    half = client(strict_kms, aws_access_key_id=stolen.access_key, aws_secret_access_key=stolen.secret_key)
    refused("UnrecognizedClientException", lambda: data_key(half, key.arn))
    sts = client(strict_kms, "sts", aws_access_key_id="AKIAUNKNOWN", aws_secret_access_key="x")
    refused("InvalidClientTokenId", sts.get_caller_identity, status=403)


def test_sts_says_who_one_is(strict_kms: StrictKms) -> None:
    answer = client(strict_kms, "sts").get_caller_identity()
    assert (answer["Arn"], answer["Account"]) == (VENDOR, "999900001111")


def test_another_process_reaches_it_through_the_environment(
    strict_kms: StrictKms, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in strict_kms.environment().items():
        monkeypatch.setenv(name, value)
    assert boto3.session.Session().client("sts").get_caller_identity()["Arn"] == VENDOR


# Faults and the record.


def test_a_fault_lasts_as_long_as_the_script_says(strict_kms: StrictKms) -> None:
    kms, arn, other = client(strict_kms), vendor_key(strict_kms), vendor_key(strict_kms)
    strict_kms.script(
        FaultRule("GenerateDataKey", key=arn, after=1, times=2, error="ThrottlingException", message="slow down")
    )
    data_key(kms, arn)
    data_key(kms, other)
    for _ in range(2):
        refused("ThrottlingException", lambda: data_key(kms, arn), status=400, text="slow down")
    data_key(kms, arn)
    strict_kms.script(FaultRule(error="KMSInternalException", times=None))
    refused("KMSInternalException", lambda: kms.describe_key(KeyId=arn), status=500)
    strict_kms.clear_script()
    kms.describe_key(KeyId=arn)


def test_a_fault_can_be_slow_silent_or_a_dropped_connection(strict_kms: StrictKms) -> None:
    arn = vendor_key(strict_kms)
    kms = client(strict_kms)
    strict_kms.script(FaultRule(latency=0.3))
    started = time.monotonic()
    kms.describe_key(KeyId=arn)
    assert time.monotonic() - started >= 0.3
    strict_kms.script(FaultRule(drop=True))
    with pytest.raises(ConnectionClosedError):
        kms.describe_key(KeyId=arn)
    strict_kms.script(FaultRule(black_hole=True))
    impatient = strict_kms.session().client(
        "kms",
        endpoint_url=strict_kms.endpoint_url,
        config=Config(read_timeout=0.3, retries={"total_max_attempts": 1}),
    )
    with pytest.raises(ReadTimeoutError):
        impatient.describe_key(KeyId=arn)
    assert [call.outcome for call in strict_kms.calls[-3:]] == ["ok", "dropped", "open"]


def test_every_request_is_counted(strict_kms: StrictKms) -> None:
    kms, arn = client(strict_kms), vendor_key(strict_kms)
    blob = data_key(kms, arn)
    with strict_kms.counting() as calls:
        kms.decrypt(CiphertextBlob=blob, KeyId=arn, EncryptionContext=CONTEXT)
        refused("InvalidCiphertextException", lambda: kms.decrypt(CiphertextBlob=blob, KeyId=arn))
        with strict_kms.counting() as inner:
            kms.describe_key(KeyId=arn)
    kms.describe_key(KeyId=arn)
    assert (calls.count(), calls.count("Decrypt"), calls.count(outcome="ok"), inner.count()) == (3, 2, 2, 1)
    assert strict_kms.count("DescribeKey", key=arn) == 2
    first = calls.calls[0]
    assert (first.operation, first.key, first.principal, first.context) == ("Decrypt", arn, VENDOR, CONTEXT)


def test_it_answers_many_at_once(strict_kms: StrictKms) -> None:
    arn = vendor_key(strict_kms)
    provider = strict_kms.provider()
    provider.describe(KmsKey(arn))
    strict_kms.script(FaultRule("GenerateDataKey", latency=0.5, times=8))
    started = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: provider.generate(KmsKey(arn), CONTEXT).plaintext, range(8)))
    assert len(set(made)) == 8
    assert time.monotonic() - started < 3.5


def test_an_operation_that_is_not_offered_is_refused(strict_kms: StrictKms) -> None:
    refused("UnknownOperationException", client(strict_kms).list_keys)
    refused("InvalidAction", client(strict_kms, "sts").get_session_token)


def test_closing_frees_whoever_waits(strict_kms: StrictKms) -> None:
    arn = vendor_key(strict_kms)
    strict_kms.script(FaultRule(black_hole=True))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client(strict_kms).describe_key, KeyId=arn)
        while not strict_kms.count("DescribeKey"):
            time.sleep(0.01)
        strict_kms.close()
        assert isinstance(waiting.exception(timeout=5), ConnectionClosedError)
