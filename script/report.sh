#!/bin/sh
# Finished runs side by side: sh script/report.sh runs/twoview --output report
# Flags of code/report.py follow.
set -eu
ROOT=$(CDPATH='' cd -P -- "$(dirname -- "$0")/.." && pwd)
. "$ROOT/script/setup.sh"
exec "$PYTHON" "$ROOT/code/report.py" "$@"
