# shellcheck shell=bash
# Sourced by the other scripts. Goes to the root of the checkout; `prepare EXTRA` then finds a Python, makes a virtual
# environment and installs the package, and leaves in $python the interpreter that has it.
#
#   an active virtual environment   is used as it is
#   PYTHON=python3.12               that interpreter, in .venv-3.12
#   neither                         the first Python that will do, in .venv
#
# With `prepare EXTRA NAME` the environment is .venv-NAME whatever is active: for tools that must not mix with it.

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." || exit 1

fail() {
  echo "error: $1" >&2
  exit 1
}

# Whether command $1 is a Python that the package runs on.
new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# Sets $base to a Python that can make a virtual environment.
find_python() {
  local names=(python3 python3.13 python3.12 python3.11)
  if [ -n "${PYTHON:-}" ]; then
    names=("$PYTHON")
  fi
  for base in "${names[@]}"; do
    if new_enough "$base" && "$base" -c 'import ensurepip, venv' >/dev/null 2>&1; then
      return
    fi
  done
  if [ -n "${PYTHON:-}" ]; then
    fail "PYTHON=$PYTHON is not a Python from 3.11 on that can make virtual environments."
  fi
  fail "no Python from 3.11 on that can make virtual environments was found, neither as python3 nor as python3.13,\
 python3.12 or python3.11 (on Debian and Ubuntu it is in the package python3-venv)."
}

# Sets $folder, the virtual environment, and $python in it; $1 is the name of one of its own, or "".
find_environment() {
  local wanted=""
  if [ -n "${PYTHON:-}" ]; then
    find_python
    wanted=-$("$base" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  fi
  folder=$PWD/.venv$wanted
  if [ -z "$wanted" ] && [ -n "${VIRTUAL_ENV:-}" ]; then
    folder=$VIRTUAL_ENV
  fi
  if [ -n "$1" ]; then
    folder=$PWD/.venv-$1
  fi
  python=$folder/bin/python
  if ! "$python" -c "" >/dev/null 2>&1; then
    find_python
    echo "making ${folder##*/} with $("$base" --version)"
    "$base" -m venv "$folder" || fail "the virtual environment $folder could not be made."
  fi
  new_enough "$python" || fail "the Python of the virtual environment $folder is older than 3.11; use another."
}

# Installs the package and the extra $1 ("" for none) with pinned versions, unless that was done and nothing changed;
# into an environment of its own if $2 names one.
prepare() {
  local extra=$1 version constraints stamp digest log line
  find_environment "${2:-}"
  version=$("$python" -c 'import sys; print("%d%d" % sys.version_info[:2])')
  constraints=scripts/constraints-py$version.txt
  [ -e "$constraints" ] || constraints=scripts/constraints-py312.txt # pins hold for 3.12 and later
  stamp=$folder/.installed${extra:+-$extra} log=$folder/install.log
  digest="$(cat setup.py "$constraints" | cksum) Python $version in $PWD"
  if [ "$(cat "$stamp" 2>/dev/null)" = "$digest" ]; then
    return
  fi
  # Some tools make environments without pip, and so does a script that is stopped half way.
  "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >"$log" 2>&1 || fail "$folder has no pip."
  echo "installing positionbias${extra:+[$extra]} (log: $log)"
  if ! "$python" -m pip install --disable-pip-version-check --progress-bar off --no-compile \
    -c "$constraints" -e ".${extra:+[$extra]}" 2>&1 | while IFS= read -r line; do
    printf '%s\n' "$line"
    case $line in *Retrying*) printf '%s\n' "$line" >&2 ;; esac # a bad connection shows at once
  done >"$log"; then
    tail -n 15 "$log" >&2
    fail "the package could not be installed; the lines above are the end of $log."
  fi
  # What an extra needs contains what the package alone needs.
  printf '%s\n' "$digest" | tee "$stamp" >"$folder/.installed"
}
