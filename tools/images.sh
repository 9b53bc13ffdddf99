#!/usr/bin/env bash
# Build the images interlock/<name>:TAG and say how large they are.
#
# TAG (default dev), REVISION (default: the commit) and SOURCE_DATE_EPOCH, the date of every
# file inside (default 0), may be set. Two builds of one commit have the same layers.
set -euo pipefail
cd "$(dirname "$0")/.."

# More than that above its base image is a mistake.
MOST_MB=150
export TAG=${TAG:-dev} SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-0}
REVISION=${REVISION:-$(git rev-parse HEAD 2>/dev/null || echo unknown)}
export REVISION
BASE=$(sed -n 's/^ARG BASE=//p' deploy/Dockerfile)

size() { # size IMAGE: in bytes
  docker image inspect --format '{{.Size}}' "$1"
}

mkdir -p build
docker buildx bake --file deploy/bake.hcl --progress plain >build/images.log 2>&1 || {
  tail -n 60 build/images.log >&2
  exit 1
}
for name in runner identity gateway token-vault sandbox tools; do
  above=$((($(size "interlock/$name:$TAG") - $(size "$BASE")) / 1000000))
  echo "interlock/$name:$TAG  $above MB above $BASE"
  [ "$above" -le "$MOST_MB" ] || { echo "more than $MOST_MB MB" >&2; exit 1; }
done
