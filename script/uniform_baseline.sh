#!/bin/sh
# Uniform baseline: the plain sum of the joint and the unimodal losses.
# Flags of code/train.py may follow: sh script/uniform_baseline.sh --random_seed 1
set -eu
ROOT=$(CDPATH='' cd -P -- "$(dirname -- "$0")/.." && pwd)
. "$ROOT/script/setup.sh"
exec "$PYTHON" "$ROOT/code/train.py" --method uniform "$@"
