#!/bin/sh
# Makes a Python that satisfies requirements.txt and exports it as $PYTHON. Meant to be sourced by the other scripts
# (they set $ROOT first); run on its own it only sets up. Without network where there is nothing to install.
# SETUP_REQUIREMENTS and SETUP_VENV: another requirements file and virtual environment (script/docs.sh).
set -eu
case "$0" in
    setup.sh | */setup.sh) ROOT=$(CDPATH='' cd -P -- "$(dirname -- "$0")/.." && pwd) ;; # whatever the environment's ROOT is
esac
REQUIREMENTS=${SETUP_REQUIREMENTS:-requirements.txt}
VENV=${SETUP_VENV:-.venv}
SIZE=
[ "$VENV" != .venv ] || SIZE=" (about 5 GB, a few minutes)"

# usable PYTHON: it exists, is new enough, and holds what $REQUIREMENTS asks for
usable() {
    [ -n "$1" ] && "$1" "$ROOT/script/check_requirements.py" "$ROOT/$REQUIREMENTS" >/dev/null 2>&1
}

# new_enough PYTHON: it exists and is 3.11 or newer
new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# nothing_to_do WHAT: says so where this script runs on its own
nothing_to_do() {
    case "$0" in
        setup.sh | */setup.sh) echo "setup: nothing to do ($1 satisfies $REQUIREMENTS)" >&2 ;;
    esac
}

# the active Python (a virtual environment that is switched on, conda, pyenv), or the newest one on the PATH that is new enough
find_python() {
    for candidate in python3 python python3.13 python3.12 python3.11; do
        if new_enough "$candidate"; then
            command -v "$candidate"
            return 0
        fi
    done
    return 1
}

VENV_PYTHON=$ROOT/$VENV/bin/python
if [ -n "${PYTHON:-}" ]; then
    if ! new_enough "$PYTHON"; then
        echo "setup: PYTHON=$PYTHON is no Python 3.11 or newer; name another one, or leave the variable out" >&2
        exit 1
    fi
    BASE_PYTHON=$(command -v "$PYTHON")
    case "$BASE_PYTHON" in
        /*) ;;
        *) BASE_PYTHON=$PWD/$BASE_PYTHON ;; # the scripts may change the folder
    esac
elif ! BASE_PYTHON=$(find_python); then
    version=$(python3 --version 2>&1 || true)
    echo "setup: Python 3.11 or newer is needed; found ${version:-none}. Install it, or name one: PYTHON=/path/to/python3.11 sh script/setup.sh" >&2
    exit 1
fi

if usable "$BASE_PYTHON"; then
    PYTHON=$BASE_PYTHON
    nothing_to_do "$PYTHON"
elif [ -x "$VENV_PYTHON" ] && usable "$VENV_PYTHON"; then
    PYTHON=$VENV_PYTHON
    nothing_to_do "$VENV"
else
    echo "setup: installing $REQUIREMENTS into $ROOT/$VENV with $BASE_PYTHON$SIZE ..." >&2
    CLEAR=
    new_enough "$VENV_PYTHON" || CLEAR=--clear # what an upgrade of the system leaves behind: its Python is gone, or too old
    # without pip: what a first attempt leaves behind where python3-venv is missing
    if ! { [ -z "$CLEAR" ] && "$VENV_PYTHON" -m pip --version >/dev/null 2>&1; } &&
        ! "$BASE_PYTHON" -m venv $CLEAR "$ROOT/$VENV" >&2; then
        echo "setup: cannot make a virtual environment in $ROOT/$VENV (on Debian and Ubuntu: apt-get install python3-venv)" >&2
        exit 1
    fi
    if ! "$VENV_PYTHON" -m pip install --quiet --disable-pip-version-check -r "$ROOT/$REQUIREMENTS" >&2; then
        echo "setup: pip could not install $REQUIREMENTS (its message stands above). Check the network and the free disk space, then run this again." >&2
        exit 1
    fi
    PYTHON=$VENV_PYTHON
    if ! "$PYTHON" "$ROOT/script/check_requirements.py" "$ROOT/$REQUIREMENTS"; then
        echo "setup: the install ended but $REQUIREMENTS is still not satisfied (see above). Remove $ROOT/$VENV and run this again." >&2
        exit 1
    fi
    echo "setup: done" >&2
fi
export PYTHON
