#!/usr/bin/env bash
# Generate the gRPC stubs under libs/protos from protos/, or check that they are current.
#
#   tools/stubs.sh write    regenerate the committed stubs
#   tools/stubs.sh check    fail when the committed stubs differ, when buf lint finds a fault,
#                           or when the contract breaks the newest released image
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The rules' own .proto is not shipped in protovalidate's wheel; its descriptor is.
"$python" tools/validate_descriptor.py "$work/validate.binpb"

generate() { # generate OUT
  mkdir -p "$1"
  PATH="$PWD/.venv/bin:$PATH" "$python" -m grpc_tools.protoc \
    --descriptor_set_in="$work/validate.binpb" --python_out="$1" buf/validate/validate.proto
  PATH="$PWD/.venv/bin:$PATH" "$python" -m grpc_tools.protoc \
    -I protos --descriptor_set_in="$work/validate.binpb" \
    --python_out="$1" --grpc_python_out="$1" \
    --mypy_out="quiet:$1" --mypy_grpc_out="quiet,only_async:$1" \
    $(cd protos && find interlock -name '*.proto' | LC_ALL=C sort)
}

image() { # image OUT: everything of the contract as one descriptor set
  "$python" -m grpc_tools.protoc -I protos --descriptor_set_in="$work/validate.binpb" \
    --include_imports --include_source_info --descriptor_set_out="$1" \
    $(cd protos && find interlock -name '*.proto' | LC_ALL=C sort)
}

case ${1:-} in
  write)
    generate libs/protos/src
    ;;
  check)
    generate "$work/stubs"
    if ! diff -rq -x __pycache__ -x py.typed "$work/stubs" libs/protos/src; then
      echo "The committed stubs are stale: run 'make stubs' and commit the result." >&2
      exit 1
    fi
    image "$work/image.binpb"
    .venv/bin/buf lint "$work/image.binpb" --config protos/buf.yaml --path interlock
    released=$(find protos/released -name '*.binpb' | LC_ALL=C sort -V | tail -1)
    if [ -n "$released" ]; then
      .venv/bin/buf breaking "$work/image.binpb" --config protos/buf.yaml --path interlock \
        --against "$released"
    fi
    ;;
  *)
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
