"""Run `pii-vault` the way a person or a script does: as another process, with pipes or on a terminal.

A process takes a second to start. What is about the command's words and codes, and not about processes, pipes and
terminals, runs it here: the same code, from the command line to the exit code.
"""

import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pii_vault

SOURCES = str(Path(pii_vault.__file__).resolve().parent.parent)


@dataclass(frozen=True)
class Outcome:
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Shown:
    """What a command left on a terminal: exit code, and what was seen, without the terminal's control sequences."""

    code: int
    text: str
    raw: str


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


def pii_vault_here(*arguments: str, stdin: str | bytes = "", **more: str) -> Outcome:
    """Run the command in this process, with what it takes for pipes; `more` are environment variables."""
    from pii_vault.cli.run import _exit_code

    given = stdin.encode() if isinstance(stdin, str) else stdin
    out, err = io.BytesIO(), io.BytesIO()
    streams = {
        "stdin": io.TextIOWrapper(io.BytesIO(given), "utf-8"),
        "stdout": io.TextIOWrapper(out, "utf-8", write_through=True),
        "stderr": io.TextIOWrapper(err, "utf-8", write_through=True),
    }
    variables: Mapping[str, str] = environment(**more)
    with (
        patch.dict(os.environ, variables, clear=True),
        patch.multiple(sys, argv=["pii-vault", *arguments], **streams),
    ):
        code = _exit_code()
    return Outcome(code, out.getvalue().decode(), err.getvalue().decode())


def pii_vault_process(*arguments: str, **more: str) -> subprocess.Popen[str]:
    """Start the command with pipes, so that Ctrl-C means something to it."""
    return subprocess.Popen(
        [sys.executable, "-m", "pii_vault", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**more),
        preexec_fn=_mind_ctrl_c,
    )


def pii_vault_on_terminal(*arguments: str, **more: str) -> str:
    """Run the command on a pseudo-terminal and return what it shows."""
    done = pii_vault_answered(*arguments, **{"COLUMNS": "140"} | more)
    assert done.code == 0, done
    return done.raw


def pii_vault_answered(*arguments: str, question: str = "", answer: str = "", **more: str) -> Shown:
    """Run the command on a pseudo-terminal, type an answer once a question has been asked, and say what was shown.

    The terminal turns ``\\x03`` into an interrupt and ``\\x04`` into the end of the input, as terminals do.
    """
    reader, writer = pty.openpty()
    columns = int(more.get("COLUMNS", "140"))
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "pii_vault", *arguments],
        stdin=writer,
        stdout=writer,
        stderr=writer,
        env=environment(TERM="xterm-256color", COLUMNS=str(columns)) | more,
        start_new_session=True,
        preexec_fn=_own_the_terminal,
    )
    os.close(writer)
    shown, asked = b"", not question
    while select.select([reader], [], [], 60)[0]:
        try:
            part = os.read(reader, 65536)
        except OSError:  # Linux's way to say that the other side closed
            break
        if not part:
            break
        shown += part
        if not asked and question.encode() in shown:
            os.write(reader, answer.encode())
            asked = True
    os.close(reader)
    code = process.wait(timeout=60)
    raw = shown.decode()
    assert asked, raw
    return Shown(code, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", raw).replace("\r\n", "\n"), raw)


def _mind_ctrl_c() -> None:
    # Runners that are started in the background ignore it, and hand that down.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _own_the_terminal() -> None:
    _mind_ctrl_c()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def commands() -> dict[str, Any]:
    """Every command that there is, by its words, as typer knows it."""
    import typer.main

    from pii_vault.cli import run
    from pii_vault.cli.app import app

    assert run  # its import is what adds the commands to the app

    def below(group: Any, prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, each in group.commands.items():
            found |= below(each, f"{prefix}{name} ") if hasattr(each, "commands") else {f"{prefix}{name}": each}
        return found

    return below(typer.main.get_command(app), "")
