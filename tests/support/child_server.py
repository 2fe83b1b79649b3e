"""What a database server needs as a child of the test process: a user, a folder, and somebody who ends it.

A server refuses to run as root, so root starts it as `nobody`. Nothing outlives the test process: a watchdog holds one
end of a pipe and cleans up when the other end closes, for whatever reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

# A socket's path may have 103 bytes on macOS and 107 on Linux, with the file name.
LONGEST_SOCKET_FOLDER = 80


class ServerUnavailableError(RuntimeError):
    """This place has no database server to offer."""


def server_user() -> str | None:
    """Return the user that a server runs as, or None for the one that runs the tests."""
    return "nobody" if os.geteuid() == 0 else None


def child_options(folder: Path, user: str | None, *settings: str) -> dict[str, Any]:
    """Return options for `subprocess`: as that user, in a folder that it can enter, without the `settings`.

    Settings meant for another server, variables with these prefixes, must not reach this one.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith((*settings, "LC_", "LANG"))}
    return {"cwd": folder, "env": environment, **_identity(user)}


def make_folder(prefix: str, user: str | None) -> Path:
    """Make the temporary folder of a server: short enough for a socket, and its user's own."""
    candidates = [tempfile.gettempdir(), "/tmp"]
    for parent in candidates:
        if len(parent) <= LONGEST_SOCKET_FOLDER - len(f"/{prefix}xxxxxxxx") and _can_enter(parent, user):
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            if user:
                shutil.chown(folder, user, _group_of(user))
            return folder
    raise ServerUnavailableError(f"none of {candidates} is a short path that {user or 'this user'} can enter")


# Each line names the server to end, or none. The pipe closes when the test process is done or dead.
# SIGQUIT is PostgreSQL's immediate shutdown, which also gives shared memory back, and MariaDB's usual one.
_WATCHDOG = """
pid=
while read -r line; do pid=$line; done
if [ -n "$pid" ]; then
    kill -QUIT "$pid"
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        kill -0 "$pid" || break
        sleep 0.5
    done
    kill -KILL "$pid"
fi
rm -rf -- "$1"
"""


class Watchdog:
    """A process that ends the server and removes its folder once the test process is done or dead."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, "sh", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            # Ctrl-C reaches every process of the terminal's group, and this one has work to do after it.
            start_new_session=True,
        )

    def tell(self, pid: int | None) -> None:
        """Say which process is the server now; None while there is none."""
        assert self._process.stdin
        self._process.stdin.write(f"{pid or ''}\n".encode())
        self._process.stdin.flush()

    def finish(self) -> None:
        """Let it clean up, and wait for it."""
        self._process.communicate()


def is_alive(pid: int) -> bool:
    """Tell whether a process runs. An orphan that nobody has waited for yet has ended all the same."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until_gone(pid: int, folder: Path) -> None:
    """Wait until a server and its folder are no more."""
    deadline = time.monotonic() + 60
    while is_alive(pid) or folder.exists():
        assert time.monotonic() < deadline, "still there after 60 s"
        time.sleep(0.05)


def _can_enter(folder: str, user: str | None) -> bool:
    command = ["/bin/sh", "-c", 'cd "$1"', "sh", folder]
    try:
        done = subprocess.run(command, capture_output=True, check=False, **_identity(user))
    except PermissionError as error:
        raise ServerUnavailableError(f"this process may not start another as {user}: {error}") from error
    return done.returncode == 0


def _identity(user: str | None) -> dict[str, Any]:
    return {"user": user, "group": _group_of(user), "extra_groups": []} if user else {}


def _group_of(user: str) -> int:
    import pwd

    return pwd.getpwnam(user).pw_gid
