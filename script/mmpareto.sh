#!/bin/sh
# MMPareto: Pareto direction where joint and unimodal gradients conflict, magnitude restored and times gamma.
# Flags of code/train.py may follow: sh script/mmpareto.sh --random_seed 1
set -eu
ROOT=$(CDPATH='' cd -P -- "$(dirname -- "$0")/.." && pwd)
. "$ROOT/script/setup.sh"
exec "$PYTHON" "$ROOT/code/train.py" --method mmpareto "$@"
