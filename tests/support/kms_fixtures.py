"""Fixtures around the strict KMS, for every test folder: ``from tests.support.kms_fixtures import
strict_kms``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support.strict_kms import StrictKms


@pytest.fixture
def strict_kms() -> Iterator[StrictKms]:
    """A KMS and STS of its own for each test (and so for each worker process)."""
    with StrictKms() as kms:
        yield kms
