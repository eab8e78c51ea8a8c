#!/usr/bin/env bash
# Makes the Python code of the contract beside its source, or into the folder given. Run as `make protos`.
set -euo pipefail
cd "$(dirname "$0")"
out=${1:-.}
python=${PYTHON:-../.venv/bin/python}
export PATH="$(cd "$(dirname "$python")" && pwd):$PATH"
find tunetrial -name '*.proto' -print0 | sort -z | xargs -0 "$python" -m grpc_tools.protoc -I. \
  --python_out="$out" --grpc_python_out="$out" --mypy_out="$out" --mypy_grpc_out="$out" 2>&1 | { grep -v "^Writing mypy" || true; }
