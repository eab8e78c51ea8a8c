#!/usr/bin/env bash
# Fails when the generated code differs from what the contract gives. Run as `make check`.
set -euo pipefail
cd "$(dirname "$0")"
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
./generate.sh "$fresh" >/dev/null 2>&1
for file in $(cd "$fresh" && find . -name '*_pb2*'); do
  cmp "$fresh/$file" "$file" || { echo "run \`make protos\` and commit the result" >&2; exit 1; }
done
for file in $(find tunetrial -name '*_pb2*.py*' -not -path '*/__pycache__/*'); do
  test -e "$fresh/$file" || { echo "$file belongs to no .proto file" >&2; exit 1; }
done
