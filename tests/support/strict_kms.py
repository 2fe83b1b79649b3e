"""AWS KMS and STS over real HTTP, as strict as AWS where revocation is concerned.

moto does the cryptography and the shape of the answers. In front of it stands this server, which keeps what
moto does not: key states, key policies with principals and encryption-context conditions, trust policies with
ExternalId, expiry of assumed credentials, cross-account use, dry runs, rotation periods and key material. It also
counts requests and plays a script of faults::

    with StrictKms() as kms:
        key = kms.customer_key()                      # a KmsKey: key, role, ExternalId and policy
        provider = kms.provider()                     # an AwsKms that talks to it
        generated = provider.generate(key, {"pii-vault:tenant": "t"})
        kms.disable(key.arn)
        kms.script(FaultRule("Decrypt", error="ThrottlingException", times=2))
        with kms.counting() as calls: ...
        calls.count("Decrypt")

Where it departs from AWS: grants are made and have no effect; no custom key stores; changes take effect at once;
signatures are not verified, only who the access key and session token belong to.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from tests.support.kms_http import (
    AwsError,
    Call,
    Counter,
    Drop,
    FaultRule,
    FaultScript,
    HttpServer,
    Reply,
    error_reply,
    iterate_counter,
    moto_address,
)
from tests.support.kms_operations import KmsOperations
from tests.support.kms_policy import (
    ALLOW_EVERYTHING,
    Policy,
    Principal,
    Question,
    account_of,
    is_allowed,
)
from tests.support.kms_sts import Credentials, Role, State, StsOperations

from pii_vault.kms import KmsKey

if TYPE_CHECKING:
    import boto3.session

    from pii_vault.kms.aws import AwsKms

__all__ = ["RUNTIME_ACTIONS", "VENDOR", "FaultRule", "StrictKms"]

VENDOR: Final = "arn:aws:iam::999900001111:user/vendor"
RUNTIME_ACTIONS: Final = ("kms:GenerateDataKey", "kms:Decrypt", "kms:ReEncryptFrom", "kms:ReEncryptTo")
_LOOK_ACTIONS: Final = ("kms:DescribeKey", "kms:GetKeyRotationStatus")


class StrictKms:
    """The server. Start it with ``with StrictKms() as kms:`` or `start` and `close`."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._lock = threading.RLock()
        self._state = State()
        self._faults = FaultScript()
        self._ahead = 0.0
        self._counters: list[Counter] = []
        self._server: HttpServer | None = None
        self._operations = KmsOperations(self._state.keys, self._authorise, self._may_create, self._exists)
        self._sts = StsOperations(self._state, self._lock, self._now)
        self._platform_key: str | None = None
        self._vendor = self.add_identity(VENDOR, ALLOW_EVERYTHING)

    # Life.

    def start(self) -> StrictKms:
        moto_address()
        _share_service_models()
        self._server = HttpServer(self._respond)
        return self

    def close(self) -> None:
        self._faults.closed.set()
        if self._server is not None:
            self._server.close()
            self._server = None

    def __enter__(self) -> StrictKms:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def endpoint_url(self) -> str:
        """One address for KMS and STS."""
        assert self._server is not None, "not started"
        return self._server.url

    # Clients.

    def session(self, identity: str = VENDOR) -> boto3.session.Session:
        """A boto3 session with the static credentials of an identity."""
        import boto3.session

        found = next(one for one in self._state.credentials.values() if one.principal.arn == identity and not one.role)
        return boto3.session.Session(
            found.access_key,
            found.secret_key,
            region_name="eu-west-1",
        )

    def provider(self, identity: str = VENDOR, **options: Any) -> AwsKms:
        """An `AwsKms` that talks to this server."""
        from pii_vault.kms.aws import AwsKms

        options = {"endpoint_url": self.endpoint_url, "sts_endpoint_url": self.endpoint_url, **options}
        options.setdefault("session", self.session(identity))
        return AwsKms(**options)

    def environment(self, identity: str = VENDOR) -> dict[str, str]:
        """Environment variables with which another process reaches this server as an identity."""
        credentials = self.session(identity).get_credentials()
        return {
            "AWS_ACCESS_KEY_ID": credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": credentials.secret_key,
            "AWS_REGION": "eu-west-1",
            "AWS_DEFAULT_REGION": "eu-west-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL_KMS": self.endpoint_url,
            "AWS_ENDPOINT_URL_STS": self.endpoint_url,
        }

    # Keys and their policies.

    def customer_key(
        self,
        *,
        account: str = "111122223333",
        region: str = "eu-west-1",
        context: Mapping[str, str] | None = None,
        external_id: str | None = "random-external-id",
        identity_policy: Policy | None = None,
        multi_region: bool = False,
    ) -> KmsKey:
        """A key as a well-advised customer sets it up: a role that trusts us, allowed by the key's policy."""
        arn = self.create_key(account, region, multi_region=multi_region)
        role = f"arn:aws:iam::{account}:role/pii-vault-{secrets.token_hex(4)}"
        self.register_role(role, external_id=external_id, identity_policy=identity_policy)
        self.allow(arn, role, context=context)
        return KmsKey(arn, role, external_id)

    def platform_key(self) -> str:
        """The ARN of our own key, which we use without a role: made at the first call, the same ever after."""
        with self._lock:
            if self._platform_key is None:
                self._platform_key = self.create_key(account_of(VENDOR))
                self.allow(self._platform_key, VENDOR)
            return self._platform_key

    def create_key(
        self,
        account: str = "111122223333",
        region: str = "eu-west-1",
        *,
        policy: Policy | None = None,
        origin: str = "AWS_KMS",
        multi_region: bool = False,
    ) -> str:
        """Make a key that nobody may use, unless `policy` says otherwise; return its ARN.

        With the origin ``EXTERNAL`` its material is to be imported: `set_state` "Enabled" stands for the import.
        """
        with self._lock:
            parameters = {"Origin": origin, "MultiRegion": multi_region}
            return self._operations.create(account, region, policy or {"Statement": []}, parameters).arn

    def replicate(self, arn: str, region: str, *, policy: Policy | None = None) -> str:
        """Make a replica of a multi-Region key, with a copy of its policy or another one; return its ARN."""
        with self._lock:
            policy = policy or self._state.keys[arn].policy
        parameters = {"ReplicaRegion": region, "Policy": json.dumps(policy)}
        self._manage("ReplicateKey", arn, **parameters)
        head, rest = arn.split(f":{self._state.keys[arn].region}:")
        return f"{head}:{region}:{rest}"

    def allow(
        self,
        arn: str,
        principal: str,
        *,
        actions: Iterable[str] = RUNTIME_ACTIONS,
        context: Mapping[str, str | Iterable[str]] | None = None,
        context_keys: Iterable[str] | None = None,
        describe: bool = True,
    ) -> None:
        """Add to a key policy.

        Args:
            arn: The key.
            principal: A role, user or account root ARN.
            actions: The cryptographic actions.
            context: Encryption-context values that must be equal; with several for one name, to one of them.
            context_keys: The closed list of encryption-context keys; a request without any is refused.
            describe: Allow looking at the key, which carries no encryption context.
        """
        condition: dict[str, Any] = {}
        if context:
            condition["StringEquals"] = {
                f"kms:EncryptionContext:{name}": value if isinstance(value, str) else list(value)
                for name, value in context.items()
            }
        if context_keys is not None:
            condition["ForAllValues:StringEquals"] = {"kms:EncryptionContextKeys": list(context_keys)}
            condition["Null"] = {"kms:EncryptionContextKeys": "false"}
        self._add_statement(arn, "Allow", principal, list(actions), condition)
        if describe:
            self._add_statement(arn, "Allow", principal, list(_LOOK_ACTIONS), {})

    def deny_all(self, arn: str) -> None:
        """Add a statement that denies everything to everybody."""
        self._add_statement(arn, "Deny", "*", ["kms:*"], {})

    def put_key_policy(self, arn: str, policy: Policy | str) -> None:
        """Replace a key policy by a policy document."""
        with self._lock:
            self._state.keys[arn].policy = json.loads(policy) if isinstance(policy, str) else policy

    def key_policy(self, arn: str) -> Policy:
        return self._state.keys[arn].policy

    def set_tags(self, arn: str, tags: Mapping[str, str]) -> None:
        """Give a key these tags and no others."""
        with self._lock:
            self._state.keys[arn].tags = dict(tags)

    def disable(self, arn: str) -> None:
        self._manage("DisableKey", arn)

    def enable(self, arn: str) -> None:
        self._manage("EnableKey", arn)

    def schedule_deletion(self, arn: str, days: int = 30) -> None:
        self._manage("ScheduleKeyDeletion", arn, PendingWindowInDays=days)

    def cancel_deletion(self, arn: str) -> None:
        self._manage("CancelKeyDeletion", arn)

    def rotate(self, arn: str) -> None:
        """Give the key new key material; the ARN stays."""
        self._manage("RotateKeyOnDemand", arn)

    def set_rotation_period(self, arn: str, days: int | None) -> None:
        """Let the key rotate by itself every so many days, or never. It is only said, not done."""
        if days is None:
            self._manage("DisableKeyRotation", arn)
        else:
            self._manage("EnableKeyRotation", arn, RotationPeriodInDays=days)

    def delete_now(self, arn: str) -> None:
        """What the end of the waiting period does."""
        with self._lock:
            del self._state.keys[arn]

    def set_state(self, arn: str, state: str) -> None:
        """Set any of AWS's states: PendingImport, Unavailable, Creating, Updating …"""
        with self._lock:
            self._state.keys[arn].state = state

    def state(self, arn: str) -> str:
        return self._state.keys[arn].state

    def forget_dry_runs(self) -> None:
        """Take every dry run for a real call from now on, as servers for tests do."""
        self._operations.knows_dry_runs = False

    @property
    def grants(self) -> list[dict[str, Any]]:
        """The grants that were made, which give nobody anything here."""
        return self._operations.grants

    # Identities and roles.

    def add_identity(self, arn: str, identity_policy: Policy | None = None) -> Credentials:
        """Make a user with static credentials: another application of ours, an attacker."""
        found = Credentials("AKIA" + secrets.token_hex(8).upper(), secrets.token_hex(20), "", Principal(arn, arn))
        with self._lock:
            self._state.credentials[found.access_key] = found
            self._state.identity_policies[arn] = identity_policy
        return found

    def register_role(
        self,
        arn: str,
        *,
        external_id: str | None = None,
        trusts: Iterable[str] = (VENDOR,),
        trust_policy: Policy | str | None = None,
        identity_policy: Policy | None = None,
        session_seconds: float | None = None,
        max_session_seconds: int = 3600,
    ) -> None:
        """Make a role that can be assumed.

        Args:
            arn: The role.
            external_id: The ExternalId that its trust policy demands, or None for none.
            trusts: Who may assume it.
            trust_policy: A whole trust policy instead of the two above.
            identity_policy: What the role may do beyond key policies that name it. Needed across accounts.
            session_seconds: Hand out credentials of this length, whatever was asked for.
            max_session_seconds: The longest session that may be asked for.
        """
        if isinstance(trust_policy, str):
            trust_policy = json.loads(trust_policy)
        statement: dict[str, Any] = {
            "Effect": "Allow",
            "Principal": {"AWS": list(trusts)},
            "Action": "sts:AssumeRole",
        }
        if external_id is not None:
            statement["Condition"] = {"StringEquals": {"sts:ExternalId": external_id}}
        with self._lock:
            trust = trust_policy or {"Statement": [statement]}
            self._state.roles[arn] = Role(trust, session_seconds, max_session_seconds)
            self._state.identity_policies[arn] = identity_policy

    def remove_role(self, arn: str) -> None:
        """Delete a role. Sessions that are out go on, as in AWS."""
        with self._lock:
            del self._state.roles[arn]

    def expire_credentials(self, role: str | None = None) -> None:
        """End assumed credentials now, although their holders believe in a later end."""
        with self._lock:
            for one in self._state.credentials.values():
                if one.role and role in (None, one.role):
                    one.expires_at = 0.0

    def pass_time(self, seconds: float) -> None:
        """Let time pass for credentials."""
        self._ahead += seconds

    def _now(self) -> float:
        return time.time() + self._ahead

    # Faults and the record.

    def script(self, *rules: FaultRule) -> None:
        """Add rules to the fault script; the first that matches a request decides."""
        self._faults.add(rules)

    def clear_script(self, *, key: str | None = None) -> None:
        """Drop all rules, or those for one key."""
        self._faults.clear(key)

    def count(self, operation: str | None = None, *, key: str | None = None, outcome: str | None = None) -> int:
        """How many requests there were, failed ones too."""
        return Counter(self.calls).count(operation, key=key, outcome=outcome)

    @contextmanager
    def counting(self) -> Iterator[Counter]:
        """Record the requests of a block."""
        yield from iterate_counter(self._counters)

    # How a request is answered.

    def _respond(self, headers: Mapping[str, str], body: bytes) -> Reply:
        target = headers.get("X-Amz-Target", "")
        sts = not target
        parameters: dict[str, Any] = dict(urllib.parse.parse_qsl(body.decode())) if sts else json.loads(body)
        operation = parameters.get("Action", "") if sts else target.partition(".")[2]
        call = Call(time.time(), operation, parameters=parameters)
        call.key = str(parameters.get("KeyId") or parameters.get("SourceKeyId") or parameters.get("RoleArn") or "")
        call.context = dict(parameters.get("EncryptionContext") or parameters.get("SourceEncryptionContext") or {})
        self.calls.append(call)
        for counter in list(self._counters):
            counter.calls.append(call)
        try:
            reply = self._answer(headers, body, call, sts=sts)
            call.outcome = "ok"
        except AwsError as error:
            call.outcome = error.code
            reply = error_reply(error, sts=sts)
        except Drop:
            call.outcome = "dropped"
            raise
        return reply

    def _answer(self, headers: Mapping[str, str], body: bytes, call: Call, *, sts: bool) -> Reply:
        call.region = self._sts.region(headers)
        rule = self._faults.take(call.operation, call.key, call.region)
        if rule is not None:
            self._faults.suffer(rule, sts=sts)
        principal, region = self._sts.authenticate(headers, sts=sts)
        call.principal = principal.arn
        if sts:
            return Reply(200, self._sts.run(call, principal, region, headers, body), "text/xml")
        with self._lock:
            answer = self._operations.run(call.operation, call.parameters, principal, region)
        altered = answer if rule is None or rule.alter is None else rule.alter(answer)
        return Reply(200, altered if isinstance(altered, bytes) else json.dumps(altered).encode())

    def _authorise(self, question: Question, policy: Policy) -> bool:
        return is_allowed(question, policy, self._state.identity_policies.get(question.principal.identity))

    def _may_create(self, question: Question) -> bool:
        policy = self._state.identity_policies.get(question.principal.identity)
        delegating = {
            "Statement": [{"Effect": "Allow", "Principal": {"AWS": question.principal.account}, "Action": "*"}]
        }
        return is_allowed(question, delegating, policy)

    def _exists(self, principal: str) -> bool:
        """Tell whether a user or role is there, as AWS looks when it is named in a policy."""
        users = {one.principal.identity for one in self._state.credentials.values() if not one.role}
        return principal in users or principal in self._state.roles

    def _manage(self, operation: str, arn: str, **parameters: Any) -> None:
        with self._lock:
            self._operations.manage(operation, self._state.keys[arn], {"KeyId": arn, **parameters})

    def _add_statement(
        self, arn: str, effect: str, principal: str, actions: list[str], condition: dict[str, Any]
    ) -> None:
        statement: dict[str, Any] = {
            "Effect": effect,
            "Principal": "*" if principal == "*" else {"AWS": principal},
            "Action": actions,
            "Resource": "*",
        }
        if condition:
            statement["Condition"] = condition
        with self._lock:
            record = self._state.keys[arn]
            record.policy = {**record.policy, "Statement": [*record.policy["Statement"], statement]}


@lru_cache(maxsize=1)
def _share_service_models() -> None:
    """Let every boto3 session of the process have one loader of AWS's service models.

    Reading them anew takes a tenth of a second for each session, also for those that the code under test makes.
    """
    import botocore.loaders
    import botocore.session

    make = botocore.session.create_loader
    shared = make()

    def create_loader(search_path: str | None = None) -> object:
        if search_path is not None:
            return make(search_path)
        # Each boto3 session adds its own folder once more, and what is not found is looked for in all of them.
        shared.search_paths[:] = dict.fromkeys(shared.search_paths)
        return shared

    botocore.session.create_loader = create_loader
