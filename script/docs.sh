#!/bin/sh
# Builds the documentation into site/, warnings are errors: sh script/docs.sh. A local preview: sh script/docs.sh serve
# MkDocs is installed into .venv-docs (170 MB); PyTorch is not needed.
set -eu
ROOT=$(CDPATH='' cd -P -- "$(dirname -- "$0")/.." && pwd)
SETUP_REQUIREMENTS=docs/requirements.txt
SETUP_VENV=.venv-docs
. "$ROOT/script/setup.sh"
cd "$ROOT"
export NO_MKDOCS_2_WARNING=1
[ $# -gt 0 ] || set -- build
exec "$PYTHON" -m mkdocs "$@"
