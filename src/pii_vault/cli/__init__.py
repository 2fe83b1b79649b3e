"""The `pii-vault` command: parse, call one library function, print. No logic lives here.

Exit codes: 0 done, 1 it failed or a check found a problem, 2 the command line is wrong, 130 interrupted with Ctrl-C.
An error is one line on standard error, with what to do next; `PII_VAULT_TRACEBACK=1` shows where an unexpected one
arose.
"""


def main() -> None:
    """Run the command that the command line asks for, and exit."""
    try:
        from .run import run
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    run()
