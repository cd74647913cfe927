#!/usr/bin/env bash
# Everything about CUDA that only a GPU can show, within 8 minutes. Run in the repository's root:
#
#   bash tests/gpu/device_check.sh                  all sections
#   bash tests/gpu/device_check.sh default bits     some of them: see device_check.py
#   CHECK_DEVICE=cpu bash tests/gpu/device_check.sh a dry run without a GPU
#
# No network is needed. Packages of pyproject.toml that are missing on the machine are installed
# from a folder .whl beside it, if there is one (fill it elsewhere with pip download -d .whl).
# Results go to $OUT: a JSON file a section, and the log.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export OUT=${OUT:-${TMPDIR:-/tmp}/cnnvis-gpu} CHECK_DEVICE=${CHECK_DEVICE:-cuda} PYTHONUNBUFFERED=1
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
python=${PYTHON:-python3}
mkdir -p "$OUT"
if compgen -G ".whl/*.whl" > /dev/null; then
    site=$(mktemp -d)
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
        --target "$site" .whl/*.whl && export PYTHONPATH=$PYTHONPATH:$site
fi
if [ "$CHECK_DEVICE" = cuda ]; then
    nvidia-smi --format=csv --query-gpu="name,driver_version,memory.total,compute_mode,mig.mode.current" \
        | tee "$OUT/smi.csv"
    df -h /dev/shm | tail -1
fi
"$python" "$here/device_check.py" "$@" 2>&1 | tee "$OUT/log"
exit "${PIPESTATUS[0]}"
