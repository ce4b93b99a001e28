#!/bin/sh
# A grid of runs, several at a time: sh script/experiment.sh --methods one_joint uniform mmpareto --seeds 0 1 2
# Flags of code/experiment.py follow.
set -eu
ROOT=$(CDPATH='' cd -P -- "$(dirname -- "$0")/.." && pwd)
. "$ROOT/script/setup.sh"
exec "$PYTHON" "$ROOT/code/experiment.py" "$@"
