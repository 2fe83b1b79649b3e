"""Operators: somebody who runs `pii-vault` with a key store and a KMS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.application import Application, application_of
from tests.support.operator import PASSWORD, KmsKeys, LocalKeys, Operator, StrictKeys, operator
from tests.support.strict_kms import StrictKms


@pytest.fixture
def local_url(tmp_path: Path) -> str:
    """A fresh SQLite file, whose path is as secret as a password."""
    folder = tmp_path / PASSWORD
    folder.mkdir()
    return f"sqlite:///{folder / 'keys.sqlite3'}"


@pytest.fixture(params=["SQLite and a local KMS", "PostgreSQL and AWS over HTTP"])
def ops(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Operator]:
    """An operator on either of the two."""
    kms: KmsKeys
    if request.param.startswith("SQLite"):
        url, kms = request.getfixturevalue("local_url"), LocalKeys(tmp_path / "kms.json")
    else:
        url, kms = request.getfixturevalue("postgres_url"), StrictKeys(request.getfixturevalue("strict_kms"))
    with operator(url, kms) as made:
        yield made


@pytest.fixture
def local(local_url: str, tmp_path: Path) -> Iterator[Operator]:
    """An operator on SQLite and a local KMS."""
    with operator(local_url, LocalKeys(tmp_path / "kms.json")) as made:
        yield made


@pytest.fixture
def aws(local_url: str, strict_kms: StrictKms) -> Iterator[Operator]:
    """An operator on SQLite and AWS over HTTP."""
    with operator(local_url, StrictKeys(strict_kms)) as made:
        yield made


@pytest.fixture
def postgres(postgres_url: str, tmp_path: Path) -> Iterator[Operator]:
    """An operator on PostgreSQL and a local KMS."""
    with operator(postgres_url, LocalKeys(tmp_path / "kms.json")) as made:
        yield made


@pytest.fixture
def app(ops: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Application]:
    """The application, with rows of `acme` from before its columns had an index, on either database."""
    yield from application_of(ops, tmp_path, monkeypatch)


@pytest.fixture
def local_app(local: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Application]:
    """The same on SQLite."""
    yield from application_of(local, tmp_path, monkeypatch)


@pytest.fixture
def postgres_app(postgres: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Application]:
    """The same on PostgreSQL."""
    yield from application_of(postgres, tmp_path, monkeypatch)
