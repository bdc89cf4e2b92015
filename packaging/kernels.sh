#!/bin/sh
# Compile all Triton kernels with each version of Triton that is given. No GPU is needed. $BIN: bin folder of the venv.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in "$@"; do
    "$BIN/python" -m pip install -q --no-deps --no-compile --target "$folder/$version" "triton==$version"
    PYTHONPATH="$folder/$version:tests" "$BIN/python" tests/helpers/kernels.py 75 80 90
    rm -rf "${folder:?}/$version"
done
