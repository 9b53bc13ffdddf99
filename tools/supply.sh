#!/usr/bin/env bash
# Say what the images are made of, or whether any of it is known to be weak.
#
# tools/supply.sh sbom|audit
set -euo pipefail
cd "$(dirname "$0")/.."

tools/venv.sh build/supply deploy/requirements-supply.lock
case ${1:-} in
  sbom)
    mkdir -p build/sbom
    for lock in deploy/images/*.lock; do
      name=$(basename "$lock" .lock)
      PYTHONWARNINGS=ignore build/supply/bin/cyclonedx-py requirements --output-reproducible --output-format JSON \
        --pyproject pyproject.toml --output-file "build/sbom/$name.cdx.json" "$lock"
      echo "build/sbom/$name.cdx.json"
    done
    ;;
  audit)
    for lock in deploy/images/*.lock; do
      echo "$(basename "$lock" .lock):"
      build/supply/bin/pip-audit --strict --disable-pip --require-hashes --requirement "$lock"
    done
    ;;
  *)
    sed -n '2,4p' "$0" >&2
    exit 2
    ;;
esac
