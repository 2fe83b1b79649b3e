"""The key file of `LocalKms`: read it, change it under a lock, never leave half of it behind.

A file of mode 0600 that only its owner can read; written to a temporary file beside it, synced, renamed. A
second file ``<name>.lock`` is locked for a change where the system has `fcntl`; elsewhere changes are safe
within one process only.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ..errors import ConfigurationError

if sys.platform != "win32":
    import fcntl

_FORMAT: Final = 1
_process_lock: Final = threading.Lock()


@dataclass(frozen=True, slots=True)
class Material:
    """One generation of a key's material.

    Attributes:
        material_id: 32 hex digits.
        secret: 32 bytes; never shown.
    """

    material_id: str
    secret: bytes = field(repr=False)


@dataclass(slots=True)
class LocalKey:
    """One key of the file.

    Attributes:
        state: ``Enabled``, ``Disabled`` or ``PendingDeletion``.
        created_at: Seconds of the wall clock.
        deletion_at: When a pending deletion takes effect, or None.
        materials: Every generation, the newest last.
        rotation_days: How often its owner lets it rotate, or None.
        rotations: When it was given new material, in seconds of the wall clock, and which.
    """

    state: str
    created_at: float
    deletion_at: float | None
    materials: tuple[Material, ...]
    rotation_days: int | None = None
    rotations: tuple[tuple[float, str], ...] = ()


@dataclass(slots=True)
class Contents:
    """What a key file says.

    Attributes:
        keys: Every key by its ARN.
        platform_key: The ARN of the platform's own key, or None while there is none.
    """

    keys: dict[str, LocalKey] = field(default_factory=dict)
    platform_key: str | None = None


class KeyFile:
    """A file of keys by ARN."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # A digest of the file and what it means, replaced together: readers take no lock.
        self._seen: tuple[bytes | None, Contents] = (None, Contents())
        if not path.parent.is_dir():
            raise ConfigurationError(
                f"the folder of the key file does not exist: {path.parent}", hint="create it first"
            )
        if not path.exists():
            with self._locked():
                if not path.exists():
                    self._write(Contents())
        self.read()

    def read(self) -> Contents:
        """Return what the file says now; do not change it."""
        raw = self._read_bytes()
        digest = hashlib.sha256(raw).digest()
        if digest == self._seen[0]:
            return self._seen[1]
        contents = _parsed(raw)
        del raw  # a traceback shows the locals of every frame
        if contents is None:
            raise self._not_a_key_file()
        self._seen = (digest, contents)
        return contents

    @contextmanager
    def change(self) -> Iterator[Contents]:
        """Give the contents to a block that changes them, alone, and write them when it ends without an error."""
        with self._locked():
            contents = _parsed(self._read_bytes())
            if contents is None:
                raise self._not_a_key_file()
            yield contents
            self._write(contents)

    def _not_a_key_file(self) -> ConfigurationError:
        return ConfigurationError(
            f"{self._path} is not a key file of format {_FORMAT}", hint="restore it from a backup"
        )

    def _read_bytes(self) -> bytes:
        try:
            descriptor = os.open(self._path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError:
            raise ConfigurationError(f"the key file {self._path} is gone", hint="restore it from a backup") from None
        except OSError as error:
            raise ConfigurationError(f"the key file {self._path} cannot be read: {error.strerror}") from None
        with open(descriptor, "rb") as file:
            mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
            if os.name == "posix" and mode & 0o077:
                raise ConfigurationError(
                    f"the key file {self._path} is open to other users (mode {mode:04o})",
                    hint=f"chmod 600 {self._path}",
                )
            return file.read()

    def _write(self, contents: Contents) -> None:
        temporary = self._path.with_name(f".{self._path.name}.{secrets.token_hex(8)}")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "wb") as file:
                file.write(_serialised(contents))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise ConfigurationError(f"the key file {self._path} cannot be written: {error.strerror}") from None
        _sync_folder(self._path.parent)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if sys.platform == "win32":  # pragma: no cover
            with _process_lock:
                yield
            return
        lock_path = self._path.with_name(self._path.name + ".lock")
        try:
            descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigurationError(f"cannot lock the key file with {lock_path}: {error.strerror}") from None
        try:
            # Each opening is locked for itself, so this keeps threads apart as well as processes.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where folders can be synced."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _serialised(contents: Contents) -> bytes:
    document = {
        "format": _FORMAT,
        "warning": "development keys: whoever reads this file can open everything that they wrap",
        "keys": {
            arn: {
                "state": key.state,
                "created_at": key.created_at,
                "deletion_at": key.deletion_at,
                "materials": [[material.material_id, material.secret.hex()] for material in key.materials],
                "rotation_days": key.rotation_days,
                "rotations": [list(each) for each in key.rotations],
            }
            for arn, key in contents.keys.items()
        },
        "platform_key": contents.platform_key,
    }
    return json.dumps(document, indent=1).encode()


def _parsed(raw: bytes) -> Contents | None:
    """Return what a file says, or None; an error raised in here would quote the file."""
    try:
        document = json.loads(raw)
        if document["format"] != _FORMAT:
            raise ValueError
        keys = {
            arn: LocalKey(
                entry["state"],
                entry["created_at"],
                entry["deletion_at"],
                tuple(Material(name, bytes.fromhex(secret)) for name, secret in entry["materials"]),
                # Optional, as is the platform's key: older files have none of these.
                _days(entry.get("rotation_days")),
                tuple((float(at), str(name)) for at, name in entry.get("rotations", ())),
            )
            for arn, entry in document["keys"].items()
        }
        platform_key = document.get("platform_key")
        if platform_key is not None and not isinstance(platform_key, str):
            raise ValueError
        return Contents(keys, platform_key)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _days(value: object) -> int | None:
    if value is None or isinstance(value, int):
        return value
    raise ValueError
