"""Multi-Region keys: who is asked while the region of a key is unavailable, in which order, and when that ends.

Related multi-Region keys have the same key material, but each has a policy and a state of its own. So only an outage
leads on to the next one: a refusal anywhere is a refusal, or a customer would have to revoke faster than we fall back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ..errors import KmsUnavailableError
from ..telemetry import telemetry
from .aws_arn import key_address
from .base import KmsKey

ResultT = TypeVar("ResultT")


def opened_somewhere(key: KmsKey, unwrap: Callable[[KmsKey], ResultT]) -> ResultT:
    """Unwrap with a key, or with the first of its replicas whose region is available.

    Args:
        key: The key, with the regions of its replicas.
        unwrap: Asks one of them.

    Raises:
        KmsUnavailableError: no region is available; it is what the key's own region has answered.
        KmsError: what the first region that is available has answered.
    """
    try:
        return unwrap(key)
    except KmsUnavailableError as error:
        # A word that this release does not know may be a new kind of refusal.
        if not (key.replica_regions and error.is_outage):
            raise
        failure = error
    for replica in key.replicas:
        try:
            opened = unwrap(replica)
        except KmsUnavailableError as error:
            if not error.is_outage:
                raise
        else:
            telemetry().opened_by_replica(key_address(replica).region)
            return opened
    raise failure
