"""Key states and their legal moves, and secrets that do not show themselves."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
import sys
import traceback

import pytest

from pii_vault.errors import KeyStateError
from pii_vault.keys import OPENING, TRANSITIONS, KeyState, Secret

BYTES = bytes(range(100, 132))

LEGAL = {
    ("pre_active", "active"),
    ("pre_active", "compromised"),
    ("pre_active", "destroyed"),
    ("active", "deactivated"),
    ("active", "compromised"),
    ("deactivated", "compromised"),
    ("deactivated", "destroyed"),
    ("compromised", "destroyed"),
}


@pytest.mark.parametrize(("before", "after"), list(itertools.product(KeyState, KeyState)))
def test_a_key_moves_forward_only(before: KeyState, after: KeyState) -> None:
    if (before, after) in LEGAL:
        before.check_transition(after)
    else:
        with pytest.raises(KeyStateError, match=f"{before} cannot become {after}"):
            before.check_transition(after)


def test_no_key_ever_comes_back() -> None:
    def reachable(state: KeyState) -> set[KeyState]:
        return set().union(*({after} | reachable(after) for after in TRANSITIONS[state]))

    assert all(state not in reachable(state) for state in KeyState)


def test_a_compromised_or_destroyed_key_is_not_loaded() -> None:
    assert set(KeyState) - OPENING == {KeyState.COMPROMISED, KeyState.DESTROYED}


def shows(text: str) -> bool:
    return any(form in text for form in (BYTES.hex(), repr(BYTES)[2:-1], BYTES.decode("latin-1"), str(list(BYTES))))


@pytest.mark.parametrize("show", [repr, str, format, ascii, "{!r:>200}".format, "%s".__mod__, lambda s: f"{[s]}"])
def test_a_secret_does_not_show_its_bytes(show: object) -> None:
    assert callable(show)
    assert not shows(show(Secret(BYTES)))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_secret_is_not_pickled(protocol: int) -> None:
    with pytest.raises(TypeError, match="neither pickled nor copied"):
        pickle.dumps(Secret(BYTES), protocol)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda secret: copy.deepcopy({"key": [secret]})])
def test_a_secret_is_not_copied(duplicate: object) -> None:
    assert callable(duplicate)
    with pytest.raises(TypeError, match="neither pickled nor copied"):
        duplicate(Secret(BYTES))


def test_a_secret_is_neither_compared_nor_hashed_nor_turned_into_anything() -> None:
    secret = Secret(BYTES)
    with pytest.raises(TypeError, match="in constant time"):
        _ = secret == Secret(BYTES)
    with pytest.raises(TypeError, match="in constant time"):
        _ = secret != BYTES
    for use in (hash, bytes, len, iter, json.dumps, vars):
        with pytest.raises(TypeError):
            use(secret)


def test_a_traceback_with_locals_does_not_show_a_secret() -> None:
    def fail(secret: Secret) -> None:
        raise RuntimeError("failed")

    try:
        fail(Secret(BYTES))
    except RuntimeError:
        kind, error, trace = sys.exc_info()
        assert kind is not None
        report = traceback.TracebackException(kind, error, trace, capture_locals=True)
    text = "".join(report.format())
    assert "<Secret of 32 bytes>" in text
    assert not shows(text)


def test_a_secret_keeps_a_copy_of_mutable_bytes() -> None:
    source = bytearray(BYTES)
    secret = Secret(source)
    source[:] = bytes(32)
    assert secret.reveal() == BYTES
