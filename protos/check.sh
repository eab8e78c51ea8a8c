#!/usr/bin/env bash
# Fails when the generated code differs from what the contract gives, and when the contract breaks what main once promised. Run as `make check`.
set -euo pipefail
cd "$(dirname "$0")"
export PATH="$(cd "$(dirname "${PYTHON:-../.venv/bin/python}")" && pwd):$PATH"
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
./generate.sh "$fresh" >/dev/null 2>&1
for file in $(cd "$fresh" && find . -name '*_pb2*'); do
  cmp "$fresh/$file" "$file" || { echo "run \`make protos\` and commit the result" >&2; exit 1; }
done
for file in $(find tunetrial -name '*_pb2*.py*' -not -path '*/__pycache__/*'); do
  test -e "$fresh/$file" || { echo "$file belongs to no .proto file" >&2; exit 1; }
done

# Every version of the contract that main ever had, since somebody may have built on it; the newest alone would forget a break once it is in.
main=$(git rev-parse --verify --quiet main || git rev-parse --verify --quiet origin/main || true)
if [ -z "$main" ] || [ "$(git rev-parse --is-shallow-repository)" = true ]; then
  echo "not compared with earlier versions of the contract: main's history is not here (git fetch --unshallow origin main)" >&2
  exit 0
fi
for version in $(git rev-list "$main" -- '*.proto'); do
  git archive "$version" . | buf breaking --against "-#format=tar" || { echo "this breaks the contract of $version" >&2; exit 1; }
done
