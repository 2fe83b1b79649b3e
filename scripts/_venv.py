"""Make a virtual environment match its requirement files, once, also when two runs ask at the same time.

Standard library only: it runs on the bare interpreter. The environment is built again from nothing when a
requirement file changes, so that a package that was dropped does not linger; a change of pyproject.toml alone
installs the project again. Any failure leaves no stamp, so the next run starts over.
"""

import fcntl
import hashlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = ROOT / "pyproject.toml"


def main(venv: Path, requirements: Path, extras: dict[str, Path]) -> None:
    packages = _digest(venv, requirements, *extras.values())
    project = _digest(venv, requirements, *extras.values(), PROJECT)
    if _stamp(venv, "project") == project:
        return
    with _Lock(venv):
        if _stamp(venv, "packages") != packages:
            _build(venv, requirements, extras)
            _write_stamp(venv, "packages", packages)
        if _stamp(venv, "project") != project:
            _say("installing pii_vault itself")
            _pip(venv, "--no-build-isolation", "--no-deps", "--editable", str(ROOT))
            _write_stamp(venv, "project", project)


def _build(venv: Path, requirements: Path, extras: dict[str, Path]) -> None:
    _say(f"creating {venv.name} with Python {sys.version.split()[0]}")
    for entry in venv.iterdir():
        if entry.name != _Lock.NAME:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    _run(venv, [sys.executable, "-m", "venv", str(venv)])
    _say(f"installing {requirements.relative_to(ROOT)} (first time, or it changed)")
    _pip(venv, "--require-hashes", "--requirement", str(requirements))
    for name, file in extras.items():
        _say(f"installing {file.relative_to(ROOT)}")
        _pip(venv, "--no-deps", "--require-hashes", "--target", str(venv / name), "--requirement", str(file))


class _Lock:
    """An exclusive lock that the kernel gives back when its holder dies, so that it cannot go stale."""

    NAME = ".lock"

    def __init__(self, venv: Path) -> None:
        self.path = venv / self.NAME

    def __enter__(self) -> None:
        self.path.parent.mkdir(exist_ok=True)
        self.file = self.path.open("a")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"waiting for another run that is preparing {self.path.parent.name}")
            fcntl.flock(self.file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self.file.close()


def _digest(venv: Path, *files: Path) -> str:
    # Scripts inside an environment carry its path and its interpreter: a moved checkout needs a new one.
    parts = [sys.version, sys.base_prefix, str(venv), *(file.read_text(encoding="utf-8") for file in files)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _stamp(venv: Path, name: str) -> str | None:
    try:
        return (venv / f".{name}.sha256").read_text(encoding="ascii")
    except FileNotFoundError:
        return None


def _write_stamp(venv: Path, name: str, digest: str) -> None:
    temporary = venv / f".{name}.new"
    temporary.write_text(digest, encoding="ascii")
    temporary.replace(venv / f".{name}.sha256")


def _pip(venv: Path, *arguments: str) -> None:
    _run(venv, [str(venv / "bin/python"), "-m", "pip", "--no-input", "install", "--quiet", *arguments])


def _run(venv: Path, command: list[str]) -> None:
    log = venv / ".install.log"
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode  # noqa: S603
    if code:
        text = log.read_text(encoding="utf-8", errors="replace").rstrip()
        sys.exit(f"{text}\n\nThis failed after {time.monotonic() - started:.0f} s: {' '.join(command)}")


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    target, main_file, *beside = sys.argv[1:]
    try:
        main(
            ROOT / target,
            ROOT / main_file,
            {name: ROOT / file for name, _, file in (item.partition("=") for item in beside)},
        )
    except PermissionError as error:
        sys.exit(f"{error}\nThis user may not write it. Remove {ROOT / target} or run as its owner.")
    except KeyboardInterrupt:
        sys.exit(130)
