"""STS of the strict KMS: whose credentials signed a request, who may assume which role, and for how long."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import RLock
from typing import Final

from tests.support.kms_http import AwsError, Call, ask_moto, caller_identity, element
from tests.support.kms_operations import KeyRecord
from tests.support.kms_policy import Policy, Principal, Question, account_of, is_allowed

_CREDENTIAL: Final = re.compile(r"Credential=([^/]+)/\d+/([^/]+)/")


@dataclass
class Role:
    """A role that can be assumed."""

    trust: Policy
    session_seconds: float | None
    max_session_seconds: int


@dataclass
class Credentials:
    """A user's for ever, or a role's until they expire."""

    access_key: str
    secret_key: str
    token: str
    principal: Principal
    expires_at: float = float("inf")
    role: str = ""


@dataclass
class State:
    """All that the strict KMS remembers beside the record of its calls."""

    keys: dict[str, KeyRecord] = field(default_factory=dict)
    roles: dict[str, Role] = field(default_factory=dict)
    identity_policies: dict[str, Policy | None] = field(default_factory=dict)
    credentials: dict[str, Credentials] = field(default_factory=dict)


class StsOperations:
    """The operations of STS over the roles and credentials of a state."""

    def __init__(self, state: State, lock: RLock, now: Callable[[], float]) -> None:
        self._state = state
        self._lock = lock
        self._now = now

    @staticmethod
    def region(headers: Mapping[str, str]) -> str:
        """Return the region that a request was signed for: its endpoint's, in AWS."""
        match = _CREDENTIAL.search(headers.get("Authorization", ""))
        return match[2] if match is not None else ""

    def authenticate(self, headers: Mapping[str, str], *, sts: bool) -> tuple[Principal, str]:
        """Return who signed a request, and for which region."""
        match = _CREDENTIAL.search(headers.get("Authorization", ""))
        if match is None:
            code = "MissingAuthenticationToken" if sts else "MissingAuthenticationTokenException"
            raise AwsError(code, "Missing Authentication Token", 403 if sts else 400)
        with self._lock:
            found = self._state.credentials.get(match[1])
        if found is None or found.token != headers.get("X-Amz-Security-Token", ""):
            code = "InvalidClientTokenId" if sts else "UnrecognizedClientException"
            raise AwsError(code, "The security token included in the request is invalid.", 403 if sts else 400)
        if self._now() >= found.expires_at:
            code = "ExpiredToken" if sts else "ExpiredTokenException"
            raise AwsError(code, "The security token included in the request is expired", 403 if sts else 400)
        return found.principal, match[2]

    def run(self, call: Call, principal: Principal, region: str, headers: Mapping[str, str], body: bytes) -> bytes:
        """Do an operation and return its answer in XML."""
        if call.operation == "GetCallerIdentity":
            return caller_identity(principal.arn, principal.account)
        if call.operation != "AssumeRole":
            raise AwsError("InvalidAction", f"not offered here: {call.operation}", 400)
        role, lifetime = self._assumable(call.parameters, principal)
        sent = {"Content-Type": headers.get("Content-Type", "application/x-www-form-urlencoded")}
        _, answered = ask_moto("sts", account_of(call.key), region, sent, body)
        return self._handed_out(
            answered.decode(), call, lifetime if role.session_seconds is None else role.session_seconds
        )

    def _assumable(self, parameters: Mapping[str, str], principal: Principal) -> tuple[Role, float]:
        arn = parameters["RoleArn"]
        with self._lock:
            role = self._state.roles.get(arn)
            identity_policy = self._state.identity_policies.get(principal.identity)
        external = [parameters["ExternalId"]] if "ExternalId" in parameters else []
        question = Question(principal, "sts:AssumeRole", arn, {"sts:externalid": external})
        if role is None or not is_allowed(question, role.trust, identity_policy):
            message = f"User: {principal.arn} is not authorized to perform: sts:AssumeRole on resource: {arn}"
            raise AwsError("AccessDenied", message, 403)
        lifetime = int(parameters.get("DurationSeconds", 3600))
        if not 900 <= lifetime <= role.max_session_seconds:
            message = "The requested DurationSeconds exceeds the MaxSessionDuration set for this role."
            raise AwsError("ValidationError", message, 400)
        return role, lifetime

    def _handed_out(self, xml: str, call: Call, lifetime: float) -> bytes:
        """Remember the credentials that moto made, and put the true end into the answer."""
        expires_at = self._now() + lifetime
        session = call.parameters["RoleSessionName"]
        role = call.key.rpartition(":role/")[2].rpartition("/")[2]
        arn = f"arn:aws:sts::{account_of(call.key)}:assumed-role/{role}/{session}"
        found = Credentials(
            element(xml, "AccessKeyId"),
            element(xml, "SecretAccessKey"),
            element(xml, "SessionToken"),
            Principal(arn, call.key),
            expires_at,
            call.key,
        )
        with self._lock:
            self._state.credentials[found.access_key] = found
        stamp = datetime.fromtimestamp(expires_at, UTC).isoformat().replace("+00:00", "Z")
        return re.sub("<Expiration>.*?</Expiration>", f"<Expiration>{stamp}</Expiration>", xml).encode()
