#!/bin/sh
# Equal search for every method, then fresh seeds of what validation chose, tables and a page:
#   sh script/leaderboard.sh --quick        3 methods, 2 trials, 2 seeds
#   sh script/leaderboard.sh                all that a run can be compared by: 10 trials, 5 seeds
# Further flags of code/experiment.py follow. The same command again does what is missing.
set -eu
ROOT=$(CDPATH='' cd -P -- "$(dirname -- "$0")/.." && pwd)
. "$ROOT/script/setup.sh"
QUICK=
for flag in "$@"; do # --quick is taken out wherever it stands
  shift
  if [ "$flag" = --quick ]; then QUICK=yes; else set -- "$@" "$flag"; fi
done
if [ -n "$QUICK" ]; then
  set -- --methods one_joint uniform mmpareto --trials 2 --seeds 10 11 "$@"
else
  set -- --methods unimodal ensemble one_joint transformer uniform uniform_gamma random pareto mmpareto ogm_ge agm pmr mmcosine \
    metabalance gradnorm mlb dgl mimo lfm inforeg opm synib relearning uw pcgrad cagrad nash_mtl \
    --trials 10 --seeds 10 11 12 13 14 --probe "$@"
fi
exec "$PYTHON" "$ROOT/code/experiment.py" --search random --recipe --output "$ROOT/runs/leaderboard" "$@"
