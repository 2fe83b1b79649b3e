"""Write the documents of an onboarding into a folder: whole, never over a file that says something else."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigurationError
from .new_file import new_file

if TYPE_CHECKING:
    from ..onboarding.documents import Document


def hand_over(documents: Iterable[Document], folder: Path) -> None:
    """Write them; those that are there already, word for word, stay.

    Raises:
        ConfigurationError: the folder cannot be made, or a file of that name says something else.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        failure = ConfigurationError(f"{folder} cannot be made: {error.strerror}", hint="name another with --out")
    else:
        for each in documents:
            _write(folder / each.name, each.text.encode())
        return
    raise failure


def _write(path: Path, content: bytes) -> None:
    if path.is_file() and path.read_bytes() == content:
        return
    with new_file(path) as write:
        write(content)
    # Policies are no secret, and somebody else is to read them.
    path.chmod(0o644)
