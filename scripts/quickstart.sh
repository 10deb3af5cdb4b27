#!/usr/bin/env bash
# Install if need be, train configs/quickstart.py, print accuracy by position and where report.html lies.
# Arguments go to positionbias.train; paths are relative to the checkout.
set -euo pipefail
# shellcheck source=scripts/environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
prepare ""
exec "$python" -m positionbias.train --config configs/quickstart.py "$@"
