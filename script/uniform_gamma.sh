#!/bin/sh
# The control: the uniform sum with encoder gradients times the same gamma as MMPareto.
# Flags of code/train.py may follow: sh script/uniform_gamma.sh --random_seed 1
set -eu
ROOT=$(CDPATH='' cd -P -- "$(dirname -- "$0")/.." && pwd)
. "$ROOT/script/setup.sh"
exec "$PYTHON" "$ROOT/code/train.py" --method uniform_gamma "$@"
