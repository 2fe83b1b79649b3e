"""One call of boto3: with own timeouts, without botocore's retries, and with typed errors.

Promises: whatever boto3 raises becomes a `KmsError`; no traceback, cause or context of it holds a signed request, a
credential or a plaintext.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from ..errors import ConfigurationError, KmsError
from .aws_errors import OWN_CREDENTIALS, exception_code, kms_error, may_be_chained
from .aws_silence import silenced

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

ResultT = TypeVar("ResultT")


def require_boto3() -> None:
    """Refuse to go on without boto3."""
    try:
        import boto3.session  # noqa: F401
        import botocore.config  # noqa: F401
    except ImportError:
        raise ConfigurationError("AWS KMS needs boto3", hint="pip install boto3") from None


def client_config(connect_timeout: float, read_timeout: float) -> object:
    """Return the configuration of every client: these timeouts, and one request a call."""
    from botocore.config import Config

    return Config(
        connect_timeout=connect_timeout,
        read_timeout=read_timeout,
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=32,
    )


def translated(operation: str, arn: str, call: Callable[[], ResultT], *, step: str | None = None) -> ResultT:
    """Run one call of boto3; turn what it raises into our error."""
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    try:
        with silenced():
            return call()
    except ClientError as error:
        failure, cause = _client_failure(error, operation, arn, step), error
    except (BotoCoreError, ResponseParserError, ValueError) as error:
        failure = kms_error(exception_code(error), operation, arn, step=step)
        cause = error if may_be_chained(error) else None
    if cause is not None:
        # The frames below hold signed requests and credentials, and error reporters print frames.
        cause.__traceback__ = cause.__cause__ = cause.__context__ = None
    # Raised out here, so that an exception that may quote parameters is not kept as __context__ either.
    raise failure from cause


def _client_failure(error: ClientError, operation: str, arn: str, step: str | None) -> KmsError:
    answered = error.response.get("Error", {})
    expected = "AssumeRole" if step == "AssumeRole" else operation
    if error.operation_name != expected:
        # botocore refreshes our own credentials inside any call; their refusal is not the customer's.
        step = OWN_CREDENTIALS
    return kms_error(
        str(answered.get("Code", "Unknown"))[:100],
        operation,
        arn,
        message=str(answered.get("Message", "")),
        status=error.response.get("ResponseMetadata", {}).get("HTTPStatusCode"),
        step=step,
    )
