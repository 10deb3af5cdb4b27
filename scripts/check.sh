#!/usr/bin/env bash
# Install if need be and run the linter, the formatter's check and the type checker; all three, whatever one says.
set -euo pipefail
# shellcheck source=scripts/environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
prepare check
red=0
"$python" -m ruff check . || red=1
"$python" -m ruff format --check . || red=1
"$python" -m mypy || red=1
exit "$red"
