#!/bin/sh
# Everything that CI checks: ruff, mypy, import layers, pytest. Arguments go to pytest: sh script/test.sh -m slow tests/integration
set -eu
ROOT=$(CDPATH='' cd -P -- "$(dirname -- "$0")/.." && pwd)
. "$ROOT/script/setup.sh"
cd "$ROOT"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
PYTHONPATH=code "$PYTHON" -c 'from importlinter.cli import lint_imports_command as lint; lint(["--no-cache"])'
unset PYTHONDONTWRITEBYTECODE # else each process that tests start compiles the package again
# two processes of one thread each: a file's tests stay in one of them, and long files come first (tests/conftest.py)
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} "$PYTHON" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
