"""`onboard`: from a customer's account to its first key, as far as it goes today; called again, it goes on."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from . import options, output
from .app import app
from .doctoring import show_findings
from .handed_over import hand_over
from .onboarding_reports import OnboardingFound
from .output import FAILED

if TYPE_CHECKING:
    from ..config import Settings
    from ..doctor.findings import Finding
    from ..keystore import OnboardingRecord, Way
    from ..onboarding.arrangement import Ours
    from ..onboarding.onboard import Onboarding

_ARN: Final = re.compile(r"arn:[^:]+:kms:(?P<region>[^:]+):(?P<account>\d{12}):key/.+")

Key = Annotated[
    str | None,
    typer.Option("--key", metavar="ARN", help="The full ARN of the customer's KMS key, once the customer has one."),
]
CreateKey = Annotated[
    bool,
    typer.Option("--create-key", help="We make the KMS key, in the customer's account, by a role that it lends us."),
]
Account = Annotated[str | None, typer.Option("--account", metavar="ID", help="The customer's AWS account, 12 digits.")]
Region = Annotated[str | None, typer.Option("--region", metavar="NAME", help="The region of the KMS key.")]
Direct = Annotated[
    bool,
    typer.Option(
        "--direct", help="Our own roles use the key; without it, we assume a role in the customer's account for that."
    ),
]
Every = Annotated[
    int, typer.Option("--kms-rotation-days", metavar="DAYS", help="How often AWS shall rotate the KMS key, 90 to 2560.")
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="FOLDER", help="Where to write the documents; TENANT-onboarding by default."),
]
Wait = Annotated[
    int,
    typer.Option(
        "--wait", metavar="SECONDS", min=0, max=300, help="How long to ask again while AWS has not heard of policies."
    ),
]
RuntimeRole = Annotated[
    str | None, typer.Option("--runtime-role", metavar="ARN", help="Our own role that the application runs as.")
]
RotationRole = Annotated[
    str | None, typer.Option("--rotation-role", metavar="ARN", help="Our own role that rotates, re-wraps and onboards.")
]
ProvisioningRole = Annotated[
    str | None,
    typer.Option("--provisioning-role", metavar="ARN", help="Our own role that makes customers' keys: --create-key."),
]


@app.command("onboard")
def onboard(
    name: options.Tenant,
    key: Key = None,
    create_key: CreateKey = False,
    account: Account = None,
    region: Region = None,
    direct: Direct = False,
    rotation_days: Every = 365,
    shared_key: options.SharedKey = False,
    out: Out = None,
    wait: Wait = 300,
    runtime_role: RuntimeRole = None,
    rotation_role: RotationRole = None,
    provisioning_role: ProvisioningRole = None,
    database_url: options.DatabaseUrl = None,
    database_schema: options.DatabaseSchema = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
    actor: options.Actor = None,
    json: options.Json = False,
) -> None:
    """Bring a customer with its own KMS key: documents, proof, keys.

    The first call makes the tenant's identity and writes down what the customer is to set up. Called again, once the
    customer has done that, it proves that the key can be used as agreed and not otherwise, and registers the tenant.
    """
    _check_usage(key, create_key, account, region)
    given = {
        "database_url": database_url,
        "database_schema": database_schema,
        "kms": kms,
        "endpoint_url": endpoint_url,
        "platform_key": platform_key,
        "actor": actor,
        "runtime_role": runtime_role,
        "rotation_role": rotation_role,
        "provisioning_role": provisioning_role,
    }
    settings = options.settings(**given)
    onboarding = options.vault(**given).onboarding(name)
    _require_aws(settings)
    arranged = any((key, create_key, account, region, direct))
    if onboarding.is_begun() and key is not None and not (create_key or account or region or direct):
        onboarding.share_key(key)
    elif arranged or not onboarding.is_begun():
        from ..kms.aws_arn import partition_of

        way, key, account, region = _place(name, key, create_key, account, region)
        onboarding.begin(
            way=way,
            account=account,
            region=region,
            ours=_ours(settings, way),
            key_arn=key,
            direct=direct,
            rotation_days=rotation_days,
            partition=partition_of(region),
        )
    _go_on(onboarding, settings, out or Path(f"{_as_file_name(name)}-onboarding"), wait, shared_key, json=json)


def _go_on(
    onboarding: Onboarding, settings: Settings, folder: Path, wait: int, shared_key: bool, *, json: bool
) -> None:
    """Take the steps that can be taken now, and say what comes next."""
    from ..keystore import OnboardingStep
    from ..onboarding.documents import Recipient

    record = onboarding.record()
    findings: Sequence[Finding] = ()
    begun = record.step is OnboardingStep.BEGUN
    if begun or (record.kms_key_arn is None and not folder.exists()):
        hand_over(onboarding.documents(), folder)
        record = onboarding.record()
    if begun:
        _tell(onboarding, record, findings, folder, json=json)
        return
    if record.step is OnboardingStep.HANDED_OVER and record.way == "created":
        with output.waiting(f"making a KMS key in account {record.kms_account}"):
            record = onboarding.make_key(settings.make_key_maker(onboarding.arrangement()), wait=wait)
    if record.kms_key_arn is not None and record.step is not OnboardingStep.REGISTERED:
        ours = [each for each in onboarding.documents() if each.who is Recipient.US]
        hand_over([each for each in ours if not (folder / each.name).exists()], folder)  # now they can name the key
        findings = _proven(onboarding, wait)
        record = onboarding.record()
        if record.step is OnboardingStep.PROVEN:
            with output.waiting(f"making the first keys of {onboarding.tenant}"):
                onboarding.register(shared_key=shared_key)
            record = onboarding.record()
    _tell(onboarding, record, findings, folder, json=json)
    if findings and record.step is not OnboardingStep.REGISTERED:
        raise typer.Exit(FAILED)


def _require_aws(settings: Settings) -> None:
    from ..errors import ConfigurationError

    if settings.kms != "aws":
        raise ConfigurationError(
            "a local KMS has no accounts and no policies", hint="there, `pii-vault tenant add` is all that is needed"
        )


def _check_usage(key: str | None, create_key: bool, account: str | None, region: str | None) -> None:
    """Refuse what contradicts itself, before anything is opened.

    Raises:
        typer.BadParameter: it does.
    """
    if key is None:
        if (account is None) != (region is None) or (create_key and account is None):
            raise typer.BadParameter("say where the customer's KMS key is: --account ID --region NAME")
        return
    if create_key:
        raise typer.BadParameter("--key is a key that is there, and --create-key makes one: give one of them")
    match = _ARN.fullmatch(key)
    if match is None:
        raise typer.BadParameter("--key is the full ARN of a KMS key: arn:aws:kms:REGION:ACCOUNT:key/ID")
    if (account or match["account"], region or match["region"]) != (match["account"], match["region"]):
        raise typer.BadParameter("--account and --region are not those of --key; leave them out")


def _place(
    name: str, key: str | None, create_key: bool, account: str | None, region: str | None
) -> tuple[Way, str | None, str, str]:
    """Return who makes the KMS key, its ARN if it is there, and its account and region; ask a person for it."""
    from ..keystore import Way

    if key is None and account is None:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise typer.BadParameter("say where the customer's KMS key is: --key ARN, or --account ID --region NAME")
        output.say(f"the onboarding of {name} begins; Ctrl-C leaves everything as it is")
        key = _answer("The ARN of the customer's KMS key; empty if there is none yet", empty=True) or None
        if key is None:
            create_key = _makes_it()
            account = _answer("The customer's AWS account, 12 digits")
            region = _answer("The region of the KMS key, for example eu-west-1")
        _check_usage(key, create_key, account, region)
    match = _ARN.fullmatch(key) if key is not None else None
    if match is not None:
        account, region = match["account"], match["region"]
    return Way.CREATED if create_key else Way.SHARED, key, str(account), str(region)


def _makes_it() -> bool:
    makes = _answer("Who makes it: the customer (c), or we, by a role that the customer lends us (w)").lower()
    if makes not in ("c", "w"):
        raise typer.BadParameter("the answer is c or w")
    return makes == "w"


def _answer(question: str, *, empty: bool = False) -> str:
    print(f"{question}: ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line.endswith("\n"):
        print(file=sys.stderr)
        raise typer.Abort
    if not line.strip() and not empty:
        raise typer.BadParameter("nothing was answered")
    return line.strip()


def _ours(settings: Settings, way: Way) -> Ours:
    """Return our own roles, as settings name them.

    Raises:
        ConfigurationError: one that is needed is not set.
    """
    from ..errors import ConfigurationError
    from ..keystore import Way
    from ..onboarding.arrangement import Ours

    needed = ["runtime_role", "rotation_role", *(["provisioning_role"] if way is Way.CREATED else [])]
    missing = [each for each in needed if getattr(settings, each) is None]
    if missing:
        raise ConfigurationError(
            f"policies name our own roles, and {missing[0]} is not set",
            hint=f"--{missing[0].replace('_', '-')} ARN, PII_VAULT_{missing[0].upper()}, or the file pii-vault.toml",
        )
    provisioning = settings.provisioning_role if way is Way.CREATED else None
    return Ours(str(settings.runtime_role), str(settings.rotation_role), provisioning)


def _proven(onboarding: Onboarding, wait: int) -> Sequence[Finding]:
    from ..doctor.patience import Patience

    with output.progress(f"proving the KMS key of {onboarding.tenant}") as show:
        return onboarding.prove(Patience(wait, progress=show))


def _tell(
    onboarding: Onboarding,
    record: OnboardingRecord,
    findings: Sequence[Finding],
    folder: Path,
    *,
    json: bool,
) -> None:
    found = OnboardingFound.of(record, onboarding.arrangement(), findings, folder)
    if json:
        output.show_json("onboard", found)
        return
    if any(each.verdict.is_bad for each in findings):
        show_findings([each for each in findings if each.verdict.is_bad])
    output.show_facts(found.facts())
    output.show_text(found.next_step)


def _as_file_name(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name).lstrip(".") or "tenant"
