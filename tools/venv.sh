#!/usr/bin/env bash
# Make a virtual environment from a lock file, or leave it when it is made of that already.
#
# tools/venv.sh FOLDER LOCK
set -euo pipefail

folder=$1 lock=$2
wanted=$(sha256sum <"$lock")
if [ "$(cat "$folder/.lock" 2>/dev/null)" = "$wanted" ]; then
  exit 0
fi
mkdir -p "$(dirname "$folder")"
.venv/bin/python -m venv --clear "$folder"
"$folder/bin/python" -m pip -qq --disable-pip-version-check install \
  --require-hashes --only-binary :all: --requirement "$lock" || {
  echo "interlock: $lock could not be installed; the first time needs a package index" >&2
  exit 1
}
echo "$wanted" >"$folder/.lock"
