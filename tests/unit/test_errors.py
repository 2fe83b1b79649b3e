"""The exceptions: one tree, drawn truthfully, that SQLAlchemy does not wrap."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest
from sqlalchemy.exc import DontWrapMixin

from pii_vault import errors
from pii_vault.errors import KmsDeniedError, KmsUnavailableError, PiiVaultError

ALL = [found for _, found in inspect.getmembers(errors, inspect.isclass) if issubclass(found, PiiVaultError)]


def drawn() -> dict[str, str]:
    """Return child and parent of the tree at the top of the module."""
    parents: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ([│ ├└─]*)(\w+Error)\b", line)
        if match is None:
            continue
        depth = len(match[1])
        above = [(level, name) for level, name in above if level < depth]
        if above:
            parents[match[2]] = above[-1][1]
        above.append((depth, match[2]))
    return parents


def test_the_drawn_tree_is_the_tree() -> None:
    real = {found.__name__: found.__bases__[0].__name__ for found in ALL if found is not PiiVaultError}
    assert drawn() == real


@pytest.mark.parametrize("kind", ALL)
def test_sqlalchemy_never_wraps_an_error_of_ours(kind: type[PiiVaultError]) -> None:
    assert issubclass(kind, DontWrapMixin)


@pytest.mark.parametrize("kind", ALL)
def test_an_error_survives_copying_and_pickling(kind: type[PiiVaultError]) -> None:
    """Process pools pickle the errors of their workers; threads that shared a failure get copies."""
    error = kind("what happened", hint="what to do")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is kind
        assert str(twin) == "what happened (what to do)"
        assert twin.hint == "what to do"


def test_the_hint_follows_the_message() -> None:
    assert str(PiiVaultError("what happened", hint="what to do")) == "what happened (what to do)"
    assert str(PiiVaultError("what happened")) == "what happened"
    assert PiiVaultError("what happened").hint is None


def test_a_kms_error_keeps_code_and_operation() -> None:
    error = KmsDeniedError("refused", code="DisabledException", operation="Decrypt", hint="ask")
    for twin in (error, copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (twin.code, twin.operation, twin.hint) == ("DisabledException", "Decrypt", "ask")


def test_only_outages_our_own_credentials_a_replica_that_lags_and_a_locked_file_can_heal_without_anybody() -> None:
    healing = {"KmsUnavailableError", "KmsCredentialsError", "KeyStoreBehindError", "KeyStoreBusyError"}
    assert {kind.__name__ for kind in ALL if kind.retryable} == healing
    assert KmsUnavailableError("later").retryable


@pytest.mark.parametrize(
    ("kind", "builtin"), [(errors.ConfigurationError, ValueError), (errors.EncodingError, ValueError)]
)
def test_errors_of_arguments_are_value_errors_too(kind: type[PiiVaultError], builtin: type[Exception]) -> None:
    assert issubclass(kind, builtin)


def test_a_foreign_value_is_both_an_open_error_and_a_mismatch() -> None:
    assert issubclass(errors.ForeignValueError, errors.OpenError)
    assert issubclass(errors.ForeignValueError, errors.TenantMismatchError)
