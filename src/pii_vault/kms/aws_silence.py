"""Keep botocore's DEBUG records about our calls out of the log: they print plaintext keys and session tokens.

``botocore.parsers`` logs the body of every answer (the data key of GenerateDataKey, the credentials of
AssumeRole) and ``botocore.endpoint`` and ``botocore.auth`` the signed headers. An application that turns
DEBUG on for all loggers would write its customers' keys into its log. Only records made during our own calls
are dropped.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

# botocore.hooks and botocore.retries name events and handlers only.
_LOGGERS: Final = (
    "botocore.parsers",
    "botocore.endpoint",
    "botocore.auth",
    "botocore.httpsession",
    "botocore.client",
)

_in_our_call: ContextVar[bool] = ContextVar("pii_vault_in_kms_call", default=False)


class _DropOurs(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.DEBUG or not _in_our_call.get()


_FILTER: Final = _DropOurs()


@contextmanager
def silenced() -> Iterator[None]:
    """Drop the DEBUG records of those loggers in this block, in this thread only."""
    for name in _LOGGERS:
        # Adding a filter that is there already does nothing; logging.config may have removed it.
        logging.getLogger(name).addFilter(_FILTER)
    token = _in_our_call.set(True)
    try:
        yield
    finally:
        _in_our_call.reset(token)
