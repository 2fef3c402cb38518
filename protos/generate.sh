#!/usr/bin/env bash
# Writes the generated protobuf code into DIR (default: beside the .proto files).
#   protos/generate.sh [DIR]
# With --lint, lints the .proto files instead, through a descriptor image, so that no schema registry is needed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
include=$("$python" -c 'import importlib.util as u; print(u.find_spec("grpc_tools").submodule_search_locations[0] + "/_proto")')
common=$("$python" -c 'import google.rpc, os; print(os.path.dirname(os.path.dirname(list(google.rpc.__path__)[0])))')
cd "$here"
if [ "${1:-}" = --lint ]; then
    image=$(mktemp --suffix=.binpb)
    trap 'rm -f "$image"' EXIT
    "$python" -m grpc_tools.protoc -I. -I"$include" -I"$common" --include_imports --include_source_info \
        --descriptor_set_out="$image" adamix_protos/*/*.proto
    "$(dirname "$(command -v "$python")")/buf" lint "$image" --config buf.yaml
else
    out=${1:-$here}
    "$python" -m grpc_tools.protoc -I. -I"$include" -I"$common" \
        --python_out="$out" --pyi_out="$out" --grpc_python_out="$out" adamix_protos/*/*.proto
fi
