#!/bin/sh
# One joint loss: encoders learn from the joint loss alone; unimodal heads learn on detached features.
# Flags of code/train.py may follow: sh script/one_joint_loss.sh --random_seed 1
set -eu
ROOT=$(CDPATH='' cd -P -- "$(dirname -- "$0")/.." && pwd)
. "$ROOT/script/setup.sh"
exec "$PYTHON" "$ROOT/code/train.py" --method one_joint "$@"
