#!/usr/bin/env bash
# Say what the images are made of, or whether any of it is known to be weak.
#
# tools/supply.sh sbom             CycloneDX, a document an image, into build/sbom/
# tools/supply.sh audit [IMAGE...] 1 when a weakness is known, or when nothing could be asked
#
# The audit asks PyPI, or the server of OSV_URL (https://api.osv.dev/v1/query, or a mirror).
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { # fail MESSAGE
  echo "interlock: $1" >&2
  exit 1
}

audit() { # audit IMAGE: 1 when a weakness is known
  local lock=deploy/images/$1.lock found said
  [ -f "$lock" ] || fail "there is no image $1"
  found=build/supply/$1.audit
  rm -f "$found"
  if said=$(build/supply/bin/pip-audit --strict --disable-pip --require-hashes \
    --progress-spinner off ${OSV_URL:+--vulnerability-service osv --osv-url "$OSV_URL"} \
    --output "$found" --requirement "$lock" 2>&1); then
    echo "$1: $(tail -n 1 <<<"$said")"
  elif [ -s "$found" ]; then
    echo "$1: $(tail -n 1 <<<"$said")"
    cat "$found"
    return 1
  else
    fail "no answer on what is known of $lock: PyPI's JSON API, or an OSV_URL, must be reached ($(tail -n 1 <<<"$said" | cut -c 1-200))"
  fi
}

tools/venv.sh build/supply deploy/requirements-supply.lock
case ${1:-} in
  sbom)
    mkdir -p build/sbom
    # Each spends seconds on being valid.
    printf '%s\n' deploy/images/*.lock | xargs -P 2 -I LOCK sh -euc '
      out=build/sbom/$(basename LOCK .lock).cdx.json
      PYTHONWARNINGS=ignore build/supply/bin/cyclonedx-py requirements --output-reproducible \
        --output-format JSON --pyproject pyproject.toml --output-file "$out" LOCK
      echo "$out"'
    ;;
  audit)
    shift
    [ "$#" -gt 0 ] || set -- gateway identity runner sandbox token-vault tools
    weak=0
    for name in "$@"; do
      audit "$name" || weak=1
    done
    exit "$weak"
    ;;
  *)
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
