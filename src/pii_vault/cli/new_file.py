"""Write a file that is evidence: whole or not at all, for its owner only, and never over another one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import ConfigurationError


@contextmanager
def new_file(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Give a block a function that writes the file; before the block runs, it is clear that it can be written.

    Raises:
        ConfigurationError: there is a file of this name, or none can be made there.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        if os.path.lexists(path):
            raise FileExistsError
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        failure = _refused(path, error)
    else:
        try:
            yield lambda content: _write(descriptor, temporary, path, content)
        finally:
            os.close(descriptor)
            with suppress(FileNotFoundError):
                os.unlink(temporary)
        return
    raise failure


def _write(descriptor: int, temporary: Path, path: Path, content: bytes) -> None:
    try:
        while content:
            content = content[os.write(descriptor, content) :]
        os.fsync(descriptor)
        _name(temporary, path)
    except OSError as error:
        failure = _refused(path, error)
    else:
        return
    raise failure


def _name(temporary: Path, path: Path) -> None:
    """Give the file its name, unless another has it by now."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if os.path.lexists(path):
            raise FileExistsError from None
        os.rename(temporary, path)


def _refused(path: Path, error: OSError) -> ConfigurationError:
    if isinstance(error, FileExistsError):
        return ConfigurationError(f"{path} is there already", hint="a report is not written over a file: name another")
    return ConfigurationError(f"{path} cannot be written: {error.strerror}", hint="name another file")
