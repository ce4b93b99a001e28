#!/bin/sh
# Several processes of one machine, one for each GPU: PROCESSES=4 sh script/distributed.sh --dataset cremad
# Flags of code/train.py follow. PROCESSES: by default the number of GPUs. RESTARTS: how often a job whose process died starts
# anew, from its last checkpoint; by default 3. A wrong flag starts nothing.
set -eu
ROOT=$(CDPATH='' cd -P -- "$(dirname -- "$0")/.." && pwd)
. "$ROOT/script/setup.sh"
"$PYTHON" "$ROOT/script/check_flags.py" "$@"
exec "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "${PROCESSES:-gpu}" --max_restarts "${RESTARTS:-3}" \
    "$ROOT/code/train.py" "$@"
