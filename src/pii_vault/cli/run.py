"""Run a command and turn whatever it raises into one line and an exit code."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from typing import Any, NoReturn

import typer

from ..errors import PiiVaultError
from . import (  # noqa: F401 - they add their commands
    adopting,
    auditing,
    costing,
    covering,
    doctoring,
    erasing,
    indexing,
    keys,
    kms_rotations,
    looking,
    onboarding,
    options,
    planning,
    reencrypting,
    reporting,
    rewrapping,
    tenants,
)
from .app import app
from .output import FAILED, USAGE, say

INTERRUPTED = 128 + signal.SIGINT


def run() -> NoReturn:
    """Run what the command line asks for, and exit."""
    # A name that the terminal's encoding has no letters for is shown as an escape, and is no failure.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # On Ctrl-C psycopg logs the pipeline that it could not end; without a handler that would be a line of its own.
    logging.getLogger("psycopg").addHandler(logging.NullHandler())
    sys.exit(_exit_code())


def _exit_code() -> int:
    if any(not _is_text(each) for each in sys.argv):
        say("an argument is not text in this system's encoding")
        return USAGE
    try:
        with options.opened:
            code = app(standalone_mode=False, prog_name="pii-vault")
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # The reader left (`| head`). What Python would still flush at exit has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except PiiVaultError as error:
        say(str(error))
        return FAILED
    except Exception as error:  # noqa: BLE001 - a person reads this, and a traceback may show a secret
        if _is_usage(error):
            return _usage(error)
        return _unexpected(error)


def _is_text(argument: str) -> bool:
    # Bytes that are no text arrive as surrogates, which neither a database nor JSON takes.
    return not any("\ud800" <= each <= "\udfff" for each in argument)


def _is_usage(error: Any) -> bool:
    # Typer brings its own copy of click from some release on: the class has two homes, the methods are the same.
    return hasattr(error, "format_message") and hasattr(error, "exit_code")


def _usage(error: Any) -> int:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "pii-vault"
    message = error.format_message().removeprefix("Invalid value: ").rstrip(".")
    if "\n" in message:
        print(message, file=sys.stderr)  # no command at all: this is the whole help
    else:
        say(f"{message} (see `{command} --help`)")
    return USAGE


def _unexpected(error: Exception) -> int:
    if os.environ.get("PII_VAULT_TRACEBACK"):
        raise error
    # Its text may quote anything, so only its kind is shown.
    say(f"unexpected {type(error).__name__} (set PII_VAULT_TRACEBACK=1 to see where)")
    return FAILED
