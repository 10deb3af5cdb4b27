#!/usr/bin/env bash
# Install if need be and run the default tests: neither slow ones nor those that need a GPU or TPU.
# Arguments go to pytest; PYTHON=python3.12 chooses an interpreter.
set -euo pipefail
# shellcheck source=scripts/environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
prepare test
exec "$python" -m pytest -n 2 --dist worksteal -m "not slow and not accelerator" "$@"
