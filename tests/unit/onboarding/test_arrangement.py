"""What is put into policies is checked before: nothing else than an address of AWS's shape gets there."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.arrangements import arrangement

from pii_vault.errors import ConfigurationError, KmsConfigurationError
from pii_vault.onboarding.arrangement import Ours

ID = "0b1f7e52-3c1d-4a0e-9d8e-2f6a7c5b4d31"
ROLE = "arn:aws:iam::999900001111:role/app"
KEY = f"arn:aws:kms:eu-west-1:111122223333:key/{ID}"


@pytest.mark.parametrize(
    "wrong",
    [
        {"account": "1111"},
        {"account": "111122223333\n"},
        {"account": "\u0661" * 12},
        {"account": '11112222333"'},
        {"region": "Frankfurt"},
        {"region": "eu-west-1\n"},
        {"region": "eu-west-\u0661"},
        {"region": "${region}"},
        {"partition": "aws-cn"},
        {"partition": 'aws"'},
        {"region": "cn-north-1"},
        {"external_id": "x"},
        {"external_id": 'quote"quote'},
        {"external_id": "new\nline"},
        {"rotation_days": 89},
        {"rotation_days": 2_561},
        {"key_arn": KEY.replace("111122223333", "444455556666")},
        {"key_arn": KEY.replace("eu-west-1", "us-east-1")},
    ],
    ids=str,
)
def test_what_is_not_of_aws_s_shape_or_contradicts_itself_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        arrangement(**wrong)


@pytest.mark.parametrize(
    "arn",
    ["alias/mine", KEY.replace(f"key/{ID}", "alias/mine"), ID, f"{KEY}\n", KEY.replace(ID, "${key}"), f'{KEY}"', ""],
)
def test_a_key_is_named_by_its_full_arn_and_nothing_else(arn: str) -> None:
    with pytest.raises(KmsConfigurationError):
        arrangement(key_arn=arn)


@pytest.mark.parametrize(
    "role",
    [
        "app",
        "arn:aws:iam::999900001111:user/app",
        "arn:aws:sts::999900001111:assumed-role/app/session",
        "arn:aws:iam::999900001111:root",
        f"{ROLE}\n",
        f'{ROLE}"',
        f"{ROLE}*",
        "*",
    ],
)
@pytest.mark.parametrize("which", ["runtime", "rotation", "provisioning"])
def test_our_own_roles_are_roles(which: str, role: str) -> None:
    with pytest.raises(ConfigurationError, match=which):
        Ours(**{"runtime": ROLE, "rotation": ROLE, which: role})


def test_an_alias_is_never_made_of_what_aws_does_not_take() -> None:
    assert arrangement(tenant="acme").alias == "alias/pii-vault/acme"
    one = arrangement(tenant='${x}"\n')
    assert one.alias == f"alias/pii-vault/{one.keyset_id:08x}"
