# Sourced by the other scripts: find a Python, then make or refresh a virtual environment.
# POSIX sh. Expects the current directory to be the checkout.

# Messages are for people: a terminal gets one line a step, a pipe gets nothing but errors.
say() {
    if [ -t 2 ]; then
        printf '%s\n' "$*" >&2
    fi
}

# A name on the PATH proves little: a pyenv shim may point nowhere, and Debian splits venv off.
usable_python() {
    "$1" -c 'import sys; assert sys.version_info >= (3, 11); import ensurepip, ssl, venv' </dev/null >/dev/null 2>&1
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        if usable_python "$PYTHON"; then
            printf '%s\n' "$PYTHON"
            return 0
        fi
        printf '%s\n' "PYTHON=$PYTHON does not run, is older than 3.11 or has no venv module. Looking for another." >&2
    fi
    for candidate in python3.13 python3.12 python3.11 python3; do
        if usable_python "$candidate"; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    cat >&2 <<'END'
No usable Python found. pii_vault needs Python 3.11 or newer with the venv and ensurepip modules.
  Debian, Ubuntu:  apt-get install python3 python3-venv
  Fedora:          dnf install python3
  macOS:           brew install python@3.13
  anywhere else:   https://www.python.org/downloads/
Have one in an unusual place? Name it:  PYTHON=/path/to/python3.13 scripts/test
END
    return 1
}

# venv_ready <venv> <requirements> [<name>=<requirements>...]
# Sets VENV. A <name>= file is installed beside the environment, in $VENV/<name>.
venv_ready() {
    VENV=$PWD/$1
    unset PYTHONHOME
    venv_python=$(find_python) || exit 1
    "$venv_python" scripts/_venv.py "$@" </dev/null || exit 1
}
