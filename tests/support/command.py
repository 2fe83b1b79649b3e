"""Run `python -m pii_vault` as another process, the way a person or a script does."""

import os
import pty
import select
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pii_vault

SOURCES = str(Path(pii_vault.__file__).resolve().parent.parent)


@dataclass(frozen=True)
class Outcome:
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


def environment(**more: str) -> dict[str, str]:
    """The environment of a command: this one, without what would change the command's own defaults."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PII_VAULT_", "AWS_"))}
    path = os.pathsep.join(filter(None, (SOURCES, kept.get("PYTHONPATH"))))
    return kept | {"PYTHONPATH": path, "COLUMNS": "100"} | more


def pii_vault_command(*arguments: str, stdin: str = "", timeout: float = 120, **more: str) -> Outcome:
    """Run the command with pipes; `more` are environment variables."""
    done = subprocess.run(
        [sys.executable, "-m", "pii_vault", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=environment(**more),
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def pii_vault_on_terminal(*arguments: str, **more: str) -> str:
    """Run the command on a pseudo-terminal and return what it shows."""
    reader, writer = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "pii_vault", *arguments],
        stdin=writer,
        stdout=writer,
        stderr=writer,
        env=environment(TERM="xterm-256color", COLUMNS="140") | more,
    )
    os.close(writer)
    shown = b""
    while select.select([reader], [], [], 60)[0]:
        try:
            part = os.read(reader, 65536)
        except OSError:  # Linux's way to say that the other side closed
            break
        if not part:
            break
        shown += part
    os.close(reader)
    assert process.wait(timeout=60) == 0, shown
    return shown.decode()
