#!/bin/sh
# Conventional Pareto (MGDA): always the minimum-norm point, magnitude not restored.
# Flags of code/train.py may follow: sh script/pareto.sh --random_seed 1
set -eu
ROOT=$(CDPATH='' cd -P -- "$(dirname -- "$0")/.." && pwd)
. "$ROOT/script/setup.sh"
exec "$PYTHON" "$ROOT/code/train.py" --method pareto "$@"
