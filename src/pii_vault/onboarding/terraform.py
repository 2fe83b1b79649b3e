"""What an arrangement asks of the customer, as one Terraform configuration to apply.

Pure text. Policies stand in it as JSON, the same that `policies` makes: what was proven of them holds here. The text
is laid out as ``terraform fmt`` lays it out.

A configuration makes roles and, where there is none, the key. It never takes over the policy of a key that exists: its
output is that policy with our statements merged in, to be put where the policy is kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from textwrap import indent
from typing import Any, Final

from ..keystore import Way
from . import policies
from .arrangement import Arrangement

_PROVIDER: Final = ">= 5.60"
"""The AWS provider since it knows ``rotation_period_in_days``."""


def terraform(arrangement: Arrangement) -> str:
    """Return the configuration, ready for ``terraform apply`` in the customer's account."""
    parts = [_head(arrangement)]
    if not arrangement.direct:
        parts += _role("access", arrangement.access_role, policies.access_role_trust(arrangement))
    if arrangement.way is Way.CREATED:
        parts += _provisioning(arrangement)
    elif arrangement.key_arn is None:
        parts += _new_key(arrangement)
    else:
        parts += _key_that_exists(arrangement)
    return "\n".join(parts)


def _head(arrangement: Arrangement) -> str:
    return f"""\
# What pii_vault asks for, to keep personal data under a KMS key of yours: account {arrangement.account}.
# Read README.md beside this file first. Look at `terraform plan` before you apply it.

terraform {{
  required_version = ">= 1.5"

  required_providers {{
    aws = {{
      source  = "hashicorp/aws"
      version = "{_PROVIDER}"
    }}
  }}
}}

provider "aws" {{
  region              = "{arrangement.region}"
  allowed_account_ids = ["{arrangement.account}"]
}}
"""


def _role(name: str, arn: str | None, trust: Mapping[str, Any]) -> list[str]:
    assert arn is not None
    return [
        _local(f"{name}_role_trust", trust),
        f"""\
resource "aws_iam_role" "{name}" {{
  name                 = "{arn.rpartition("/")[2]}"
  max_session_duration = 3600
  assume_role_policy   = local.{name}_role_trust
}}

output "{name}_role_arn" {{
  value = aws_iam_role.{name}.arn
}}
""",
    ]


def _new_key(arrangement: Arrangement) -> list[str]:
    return [
        _local("key_policy", policies.key_policy(arrangement)),
        f"""\
resource "aws_kms_key" "pii_vault" {{
  description              = "Wraps the keys of personal data (pii_vault)"
  key_usage                = "ENCRYPT_DECRYPT"
  customer_master_key_spec = "SYMMETRIC_DEFAULT"
  enable_key_rotation      = true
  rotation_period_in_days  = {arrangement.rotation_days}
  deletion_window_in_days  = 30
  policy                   = local.key_policy

  tags = {{
    "{policies.TENANT_TAG}" = "{arrangement.tenant_uid.hex()}"
  }}
{_after_the_role(arrangement)}
  # Without this key the data that it protects can never be read again.
  lifecycle {{
    prevent_destroy = true
  }}
}}

resource "aws_kms_alias" "pii_vault" {{
  name          = "{arrangement.alias}"
  target_key_id = aws_kms_key.pii_vault.key_id
}}

# Send us this.
output "kms_key_arn" {{
  value = aws_kms_key.pii_vault.arn
}}
""",
    ]


def _key_that_exists(arrangement: Arrangement) -> list[str]:
    statements = {"Version": "2012-10-17", "Statement": policies.key_statements(arrangement)}
    return [
        f"""\
# The policy of {arrangement.key_arn}
# is not managed here, and must not be: two places that write one policy overwrite each other. Give its present text
# (aws kms get-key-policy --key-id ... --output text), and put the output where you keep it.
variable "present_key_policy" {{
  type = string
}}
""",
        _local("key_statements", statements),
        f"""\
data "aws_iam_policy_document" "key" {{
  source_policy_documents = [var.present_key_policy, local.key_statements]
}}

output "key_policy" {{
  value = data.aws_iam_policy_document.key.json
{_after_the_role(arrangement)}}}
""",
    ]


def _provisioning(arrangement: Arrangement) -> list[str]:
    return [
        """\
# We make the key through this role, once. Delete the role when we have told you the key's ARN: take away everything
# from here to the end of the file, and apply again.
""",
        *_role("provisioning", arrangement.provisioning_role, policies.provisioning_role_trust(arrangement)),
        _local("provisioning_role_permissions", policies.provisioning_role_permissions(arrangement)),
        """\
resource "aws_iam_role_policy" "provisioning" {
  name   = "make-one-key"
  role   = aws_iam_role.provisioning.id
  policy = local.provisioning_role_permissions
}
""",
    ]


def _after_the_role(arrangement: Arrangement) -> str:
    if arrangement.direct:
        return ""
    # AWS refuses a policy that names a role which is not there.
    return "\n  depends_on = [aws_iam_role.access]\n"


def _local(name: str, document: Mapping[str, Any]) -> str:
    # Nothing in a document can end the text or start an interpolation: names and ids were checked by `Arrangement`.
    text = indent(json.dumps(document, indent=2), "    ")
    return f"locals {{\n  {name} = <<-JSON\n{text}\n  JSON\n}}\n"
