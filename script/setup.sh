#!/bin/sh
# Makes a Python that satisfies requirements.txt and exports it as $PYTHON. Meant to be sourced by the other scripts
# (they set $ROOT first); run on its own it only sets up. Without network where there is nothing to install.
set -eu
ROOT=${ROOT:-$(CDPATH='' cd -P -- "$(dirname -- "$0")/.." && pwd)}

# usable PYTHON: it exists, is new enough, and holds what requirements.txt asks for
usable() {
    [ -n "$1" ] && "$1" "$ROOT/script/check_requirements.py" "$ROOT/requirements.txt" >/dev/null 2>&1
}

# the active Python (a virtual environment that is switched on, conda, pyenv), or the newest one on the PATH that is new enough
find_python() {
    for candidate in "${PYTHON:-}" python3 python python3.13 python3.12 python3.11; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$candidate"
            return 0
        fi
    done
    return 1
}

VENV_PYTHON=$ROOT/.venv/bin/python
if ! BASE_PYTHON=$(find_python); then
    found=$(python3 --version 2>&1 || true)
    echo "setup: Python 3.11 or newer is needed; found ${found:-none}. Install it, or name one: PYTHON=/path/to/python3.11 sh script/setup.sh" >&2
    exit 1
fi

if usable "$BASE_PYTHON"; then
    PYTHON=$BASE_PYTHON
    echo "setup: nothing to do ($PYTHON satisfies requirements.txt)" >&2
elif [ -x "$VENV_PYTHON" ] && usable "$VENV_PYTHON"; then
    PYTHON=$VENV_PYTHON
    echo "setup: nothing to do (.venv satisfies requirements.txt)" >&2
else
    echo "setup: installing requirements.txt into $ROOT/.venv with $BASE_PYTHON (about 5 GB, a few minutes) ..." >&2
    if ! { [ -x "$VENV_PYTHON" ] || "$BASE_PYTHON" -m venv "$ROOT/.venv"; }; then
        echo "setup: cannot make a virtual environment in $ROOT/.venv (on Debian and Ubuntu: apt-get install python3-venv)" >&2
        exit 1
    fi
    if ! "$VENV_PYTHON" -m pip install --quiet --disable-pip-version-check -r "$ROOT/requirements.txt" >&2; then
        echo "setup: pip could not install requirements.txt (its message stands above). Check the network and the free disk space, then run this again." >&2
        exit 1
    fi
    PYTHON=$VENV_PYTHON
    if ! "$PYTHON" "$ROOT/script/check_requirements.py" "$ROOT/requirements.txt"; then
        echo "setup: the install ended but requirements.txt is still not satisfied (see above). Remove $ROOT/.venv and run this again." >&2
        exit 1
    fi
    echo "setup: done" >&2
fi
export PYTHON
