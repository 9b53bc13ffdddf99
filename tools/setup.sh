#!/usr/bin/env bash
# Set up .venv: every dependency at its pinned hash, the workspace's packages in place.
#
# Done once: while the lock and the packages' own metadata stay as they are, a later call
# returns at once and needs no network. PYTHON=python3.12 chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { # fail MESSAGE: one line on what is missing
  echo "interlock: $1" >&2
  exit 1
}

[ "$(uname -s)" = Linux ] || fail "Linux is needed; this is $(uname -s)"
getconf GNU_LIBC_VERSION >/dev/null 2>&1 || fail "a Linux with glibc is needed (musl has no wheels for us)"
case $(uname -m) in
  x86_64 | aarch64) ;;
  *) fail "an x86-64 or arm64 machine is needed; this is $(uname -m)" ;;
esac
command -v git >/dev/null || fail "git is missing"
command -v setpriv >/dev/null || fail "setpriv is missing (package util-linux)"

is_supported() { # is_supported PYTHON
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

python=
for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
  if is_supported "$candidate"; then
    python=$candidate
    break
  fi
done
[ -n "$python" ] || fail "Python 3.11, 3.12 or 3.13 is missing (set PYTHON=/path/to/python3.x if it is not on the PATH)"

packages=(libs/protos libs/chassis libs/tokens libs/cli clients/python services/* sandbox)
stamp=.venv/.interlock-setup
wanted=$(cat requirements.lock tools/setup.sh "${packages[@]/%//pyproject.toml}" | sha256sum)
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && is_supported .venv/bin/python; then
  exit 0
fi

"$python" -c 'import ensurepip, venv' 2>/dev/null \
  || fail "Python's venv module is missing (package python3-venv)"
echo "Setting up .venv with $("$python" --version) ..."
rm -f "$stamp"
is_supported .venv/bin/python || "$python" -m venv --clear .venv
pip() { .venv/bin/python -m pip -qq --disable-pip-version-check "$@"; }
pip install --require-hashes --only-binary :all: --requirement requirements.lock \
  || fail "the dependencies could not be installed; the first set-up needs a package index"
editables=()
for package in "${packages[@]}"; do
  editables+=(--editable "$package")
done
pip install --no-deps --no-build-isolation "${editables[@]}"
echo "$wanted" >"$stamp"
