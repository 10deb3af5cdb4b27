#!/usr/bin/env bash
# Install if need be and compile every driver of attention and of recurrences for TPUs and an H200, none of which must be
# there. Arguments go to positionbias.kernels.compile_targets, such as --target v5e. Needs Python 3.12 or later, about
# 2 GB on disk for .venv-targets, and about half an hour for all on two cores.
set -euo pipefail
# shellcheck source=scripts/environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
if [ -z "${PYTHON:-}" ]; then
  for PYTHON in python3 python3.13 python3.12 "${HOME:-}"/.pyenv/versions/3.12.*/bin/python ""; do
    if [ -z "$PYTHON" ] || "$PYTHON" -c 'import sys, venv; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1; then
      break
    fi
  done
  [ -n "$PYTHON" ] || fail "no Python from 3.12 on was found; PYTHON=... names one."
fi
prepare targets targets
# No chip is here and nobody is to look for one, or lock it; the compiler for GPUs does not need CUDA's libraries, and
# tells what registers it takes.
export JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 ALLOW_MULTIPLE_LIBTPU_LOAD=1
export JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 MOSAIC_GPU_DUMP_PTXAS=1
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-3}
exec "$python" -m positionbias.kernels.compile_targets "$@"
