"""When a customer's KMS key was rotated, beside what we did under it; and how often it is, by whoever may say so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.support.kms_http import FaultRule
from tests.support.strict_kms import RUNTIME_ACTIONS, VENDOR, StrictKms

from pii_vault import LocalKms, Vault
from pii_vault.errors import (
    ConfigurationError,
    KmsConfigurationError,
    KmsCorruptError,
    KmsDeniedError,
    KmsUnavailableError,
)
from pii_vault.kms import KmsKey
from pii_vault.kms.aws_admin import AwsRotationOwner
from pii_vault.lifecycle.kms_history import What
from pii_vault.lifecycle.parts import Reason

DAY = timedelta(days=1)


class App:
    """A tenant whose role may look at the rotations of its KMS key."""

    def __init__(self, url: str, kms: StrictKms) -> None:
        self.kms = kms
        self.vault = Vault(url, kms=kms.provider(attempts=1), platform_key=kms.platform_key())
        self.vault.create_all()
        self.key: KmsKey = kms.customer_key()
        self.vault.add_tenant("acme", key=self.key.arn, role_arn=self.key.role_arn, external_id=self.key.external_id)
        self.allow(self.key, "kms:ListKeyRotations")

    def allow(self, key: KmsKey, *actions: str) -> None:
        assert key.role_arn is not None
        self.kms.allow(key.arn, key.role_arn, actions=actions)

    def owner(self, *actions: str) -> AwsRotationOwner:
        """A role of the customer's that may do these, lent to whoever runs the command."""
        role = "arn:aws:iam::111122223333:role/lent"
        self.kms.register_role(role, external_id="lent-id")
        self.kms.allow(self.key.arn, role, actions=actions, describe=False)
        url = self.kms.endpoint_url
        return AwsRotationOwner(
            endpoint_url=url, sts_endpoint_url=url, role_arn=role, external_id="lent-id", session=self.kms.session()
        )


@pytest.fixture
def app(sqlite_url: str, strict_kms: StrictKms) -> Iterator[App]:
    app = App(sqlite_url, strict_kms)
    yield app
    app.vault.close()


def whats(app: App) -> list[tuple[What, str, int | None]]:
    return [(each.what, each.kind, each.version) for each in app.vault.kms_history("acme").lines]


def test_all_is_in_one_list_by_time_and_says_what_it_means(app: App) -> None:
    app.kms.rotate(app.key.arn)
    app.vault.rotate("acme", Reason.FORCED)
    app.vault.rewrap("acme")
    moved = app.kms.customer_key()
    assert app.key.role_arn is not None
    app.kms.allow(moved.arn, app.key.role_arn)
    app.allow(moved, "kms:ListKeyRotations")
    found = app.vault.kms_history("acme")
    assert [(each.what, each.kind, each.version) for each in found.lines] == [
        (What.WRAPPED, "", 1),
        (What.DATA_KEY, "initial", 1),
        (What.KMS_ROTATED, "on-demand", None),
        (What.DATA_KEY, "forced", 2),
        (What.REWRAPPED, "", 1),
    ]
    assert found.unseen_because is None
    assert [each.at for each in found.lines] == sorted(each.at for each in found.lines)
    assert {each.kms_key_arn for each in found.lines} == {app.key.arn}
    rotated = found.lines[2]
    assert "No data key changed" in rotated.meaning
    # What the KMS key wraps with since then is what the next data key came from, and what was re-wrapped under.
    assert found.lines[0].kms_key_material_id != rotated.kms_key_material_id
    assert {each.kms_key_material_id for each in found.lines[2:]} == {rotated.kms_key_material_id}
    app.vault.rewrap("acme", to=moved.arn, role_arn=moved.role_arn, external_id=moved.external_id, new_kek=True)
    *_, last = app.vault.kms_history("acme").lines
    assert (last.what, last.version, last.kms_key_arn) == (What.REPLACED, 2, moved.arn)
    assert What.KMS_ROTATED not in {each.what for each in app.vault.kms_history("acme").lines}  # the new one was never


def test_a_kms_that_does_not_show_them_is_an_answer_and_the_rest_is_told(app: App) -> None:
    app.kms.put_key_policy(app.key.arn, {"Statement": []})
    assert app.key.role_arn is not None
    app.kms.allow(app.key.arn, app.key.role_arn, actions=RUNTIME_ACTIONS)
    found = app.vault.kms_history("acme")
    assert [each.what for each in found.lines] == [What.WRAPPED, What.DATA_KEY]
    assert found.unseen_because is not None
    assert "kms:ListKeyRotations (AccessDeniedException)" in found.unseen_because


def test_aws_shows_them_to_no_other_account(app: App) -> None:
    """Our own role may be allowed to by the key's policy: across accounts AWS refuses nevertheless."""
    arn = app.kms.create_key()
    app.kms.allow(arn, VENDOR, actions=[*RUNTIME_ACTIONS, "kms:ListKeyRotations"])
    provider = app.kms.provider(attempts=1)
    assert provider.describe(KmsKey(arn)).arn == arn
    seen = provider.rotation_history(KmsKey(arn))
    assert seen.rotations == ()
    assert "AccessDeniedException" in str(seen.unseen_because)


def test_a_role_that_lets_us_in_no_more_is_an_answer_too(app: App) -> None:
    assert app.key.role_arn is not None
    app.kms.remove_role(app.key.role_arn)
    seen = app.kms.provider(attempts=1).rotation_history(app.key)
    assert "AccessDenied" in str(seen.unseen_because)


def test_a_key_that_has_none_to_show_is_an_answer_too(app: App) -> None:
    app.kms.script(FaultRule("ListKeyRotations", error="UnsupportedOperationException"))
    assert "UnsupportedOperationException" in str(app.vault.kms_history("acme").unseen_because)


@pytest.mark.parametrize(
    ("error", "found"),
    [("KMSInternalException", KmsUnavailableError), ("InvalidArnException", KmsConfigurationError)],
)
def test_whatever_else_goes_wrong_is_an_error(app: App, error: str, found: type[Exception]) -> None:
    app.kms.script(FaultRule("ListKeyRotations", error=error, times=None))
    with pytest.raises(found):
        app.vault.kms_history("acme")


def test_long_histories_come_in_pages(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(7):
        app.kms.rotate(app.key.arn)
    everything = app.kms.provider().rotation_history(app.key).rotations
    assert len({each.key_material_id for each in everything}) == 7
    monkeypatch.setattr("tests.support.kms_operations.PAGE", 3)
    with app.kms.counting() as calls:
        assert app.kms.provider().rotation_history(app.key).rotations == everything
    assert calls.count("ListKeyRotations") == 3


@pytest.mark.parametrize(
    "alter",
    [
        lambda answer: answer | {"Rotations": [each | {"KeyId": "another"} for each in answer["Rotations"]]},
        lambda answer: {"Truncated": False},
        lambda answer: answer | {"Truncated": True, "NextMarker": "0"},
    ],
    ids=["another key's", "none", "without end"],
)
def test_an_answer_that_is_none_is_refused(app: App, alter: Callable[[Any], Any]) -> None:
    app.kms.rotate(app.key.arn)
    app.kms.script(FaultRule("ListKeyRotations", alter=alter, times=None))
    with pytest.raises(KmsCorruptError):
        app.kms.provider().rotation_history(app.key)


def test_material_that_waits_for_its_rotation_is_no_rotation(app: App) -> None:
    waiting = {"KeyId": app.key.arn, "KeyMaterialId": "0" * 64, "KeyMaterialState": "PENDING_ROTATION"}
    app.kms.script(
        FaultRule("ListKeyRotations", alter=lambda answer: answer | {"Rotations": [waiting, *answer["Rotations"]]})
    )
    app.kms.rotate(app.key.arn)
    assert len(app.kms.provider().rotation_history(app.key).rotations) == 1


def test_how_often_it_rotates_is_read_with_when_next_and_when_last(app: App) -> None:
    found = app.vault.kms_rotation("acme")
    assert (found.status.period, found.status.next_at, found.last_at, found.changed) == (None, None, None, False)
    app.kms.set_rotation_period(app.key.arn, 180)
    app.kms.rotate(app.key.arn)
    found = app.vault.kms_rotation("acme")
    assert found.status.period == 180 * DAY
    assert found.status.next_at is not None
    assert found.last_at is not None
    assert found.last_at <= datetime.now(UTC) < found.status.next_at


def test_it_is_set_by_a_role_that_the_customer_lends_and_read_back(app: App) -> None:
    owner = app.owner("kms:EnableKeyRotation", "kms:GetKeyRotationStatus")
    with app.kms.counting() as calls:
        found = app.vault.set_kms_rotation("acme", 120, owner)
    assert (found.status.period, found.changed, found.kms_key_arn) == (120 * DAY, True, app.key.arn)
    by = {call.operation: call.principal for call in calls.calls if call.operation != "AssumeRole"}
    assert by["EnableKeyRotation"].endswith(":assumed-role/lent/pii-vault")
    assert by["GetKeyRotationStatus"] == by["EnableKeyRotation"]
    assert app.vault.kms_rotation("acme").status.period == 120 * DAY


def test_our_own_role_need_not_be_allowed_to_and_is_not(app: App) -> None:
    url = app.kms.endpoint_url
    owner = AwsRotationOwner(
        endpoint_url=url,
        sts_endpoint_url=url,
        role_arn=app.key.role_arn,
        external_id=app.key.external_id,
        session=app.kms.session(),
    )
    with pytest.raises(KmsDeniedError):
        app.vault.set_kms_rotation("acme", 120, owner)
    assert app.vault.kms_rotation("acme").status.period is None


@pytest.mark.parametrize("days", [89, 2561, 0, -1])
def test_a_period_that_no_kms_key_has_is_refused_before_any_call(app: App, days: int) -> None:
    owner = app.owner("kms:EnableKeyRotation", "kms:GetKeyRotationStatus")
    with app.kms.counting() as calls:
        with pytest.raises(ConfigurationError, match=f"every 90 to 2560 days, not every {days}"):
            app.vault.set_kms_rotation("acme", days, owner)
        with pytest.raises(ConfigurationError, match="90 to 2560 days"):
            owner.set_rotation_period(app.key.arn, days)
    assert calls.calls == []


def test_a_role_of_another_account_is_refused_before_any_call(app: App) -> None:
    owner = AwsRotationOwner(endpoint_url=app.kms.endpoint_url, role_arn="arn:aws:iam::444455556666:role/x")
    with app.kms.counting() as calls, pytest.raises(KmsConfigurationError, match="not in the key's account"):
        owner.set_rotation_period(app.key.arn, 120)
    assert calls.calls == []


def test_the_development_kms_answers_likewise(sqlite_url: str, tmp_path: Any) -> None:
    kms = LocalKms(tmp_path / "kms.json")
    vault = Vault(sqlite_url, kms=kms)
    vault.create_all()
    arn = kms.create_key()
    vault.add_tenant("acme", key=arn)
    kms.rotate_key(arn)
    found = vault.set_kms_rotation("acme", 90, kms)
    assert (found.status.period, found.status.next_at) == (90 * DAY, None)
    assert [each.what for each in vault.kms_history("acme").lines] == [What.WRAPPED, What.DATA_KEY, What.KMS_ROTATED]
    again = LocalKms(tmp_path / "kms.json").rotation_history(KmsKey(arn))
    assert [each.key_material_id for each in again.rotations] == [kms.describe(KmsKey(arn)).key_material_id]
    vault.close()
