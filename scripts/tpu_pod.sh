#!/usr/bin/env bash
# Train one run on all hosts of a Cloud TPU slice, from a machine with gcloud, with one command on every host:
#
#   scripts/tpu_pod.sh NAME ZONE install REPOSITORY [REVISION]    clone and install the package on every host
#   scripts/tpu_pod.sh NAME ZONE train --config FILE [...]        start, or go on: the first host keeps the run folder
#   scripts/tpu_pod.sh NAME ZONE stop                             SIGTERM: saves a checkpoint and ends
#   scripts/tpu_pod.sh NAME ZONE log                              the last lines of every host
#   scripts/tpu_pod.sh --dry-run NAME ZONE ...                    prints the command and runs nothing
#
# JAX finds the other hosts by itself. Paths in the arguments are those of the hosts; a --workdir that outlives the slice
# must lie on a disk that is mounted on the first host. Training goes on when this terminal is closed.
set -euo pipefail

usage="scripts/tpu_pod.sh [--dry-run] NAME ZONE install REPOSITORY [REVISION] | train --config FILE [...] | stop | log"
fail() {
  echo "error: $1; allowed: $usage" >&2
  exit 1
}

dry=""
if [ "${1:-}" = --dry-run ]; then
  dry=yes
  shift
fi
[ $# -ge 3 ] && [ -n "$1" ] && [ -n "$2" ] || fail "name, zone or what to do is missing"
name=$1 zone=$2 what=$3
shift 3
case $what in
install)
  [ $# -ge 1 ] && [ $# -le 2 ] && [ -n "$1" ] || fail "install takes a repository and perhaps a revision"
  printf -v source '%q' "$1"
  printf -v revision '%q' "${2:-HEAD}"
  told="if [ -d positionbias ]; then git -C positionbias remote set-url origin $source; else"
  told+=" git clone -q $source positionbias; fi && cd positionbias && git fetch -q origin $revision"
  told+=" && git checkout -q FETCH_HEAD && { [ -d .venv ] || python3 -m venv .venv; }"
  told+=" && pins=scripts/constraints-py\$(.venv/bin/python -c 'import sys; print(\"%d%d\" % sys.version_info[:2])').txt"
  told+=" && .venv/bin/pip install -q -c \"\$pins\" -e '.[tpu]'"
  ;;
train)
  [ $# -ge 1 ] || fail "train takes what positionbias.train does"
  case " $* " in *" --config "* | *" --config="*) ;; *) fail "there is no --config behind train" ;; esac
  case " $* " in *" --processes"*) fail "--processes is not allowed behind train, as hosts find each other" ;; esac
  printf -v arguments ' %q' "$@"
  told="cd positionbias && { setsid nohup .venv/bin/python -m positionbias.train$arguments --processes auto"
  told+=" >>pod.log 2>&1 </dev/null & } && sleep 5 && tail -n 5 pod.log"
  ;;
stop)
  [ $# -eq 0 ] || fail "stop takes nothing more"
  told="pkill -TERM -f '[p]ositionbias.train'" # the brackets keep this very command from being found
  ;;
log)
  [ $# -eq 0 ] || fail "log takes nothing more"
  told="tail -n 5 positionbias/pod.log"
  ;;
*) fail "'$what' is not allowed" ;;
esac
command=(gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$told")
if [ -n "$dry" ]; then
  printf '%q ' "${command[@]}"
  echo
else
  exec "${command[@]}"
fi
