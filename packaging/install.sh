#!/bin/sh
# Create the virtual environment $VENV and install gn_det and its dependencies into it.
# It can be run again and never asks for input.
set -eu
venv=${VENV:-.venv}
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
    echo "error: gn_det needs Python 3.11 or newer, but '$python' is older or missing; choose another one with make PYTHON=..." >&2
    exit 2
}
if [ ! -x "$venv/bin/python" ]; then
    echo "Creating $venv ..."
    "$python" -m venv "$venv"
fi
echo "Installing PyTorch, the dependencies of detectron2, and gn_det into $venv (the first time: several GB, a few minutes) ..."
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
if "$venv/bin/python" -c 'import detectron2, sys; sys.exit("LabGym" in detectron2.__file__)' 2>/dev/null; then
    echo "Using the detectron2 that is installed in $venv."
    pip install -c constraints.txt -e '.[dev,draw]'
else
    # Uninstall labgym and install it last: while it is present, pip complains that labgym's dependencies, which
    # detectron2 does not need, are missing.
    pip uninstall --yes labgym >/dev/null 2>&1 || true
    pip install -c constraints.txt -e '.[dev,draw]' ./packaging/labgym_bridge
    pip install --no-deps --ignore-requires-python --require-hashes -r packaging/labgym.txt
fi
"$venv/bin/python" -W ignore -c 'import gn_det, detectron2; print("gn_det", gn_det.__version__, "with detectron2", detectron2.__version__)'
