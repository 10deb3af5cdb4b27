#!/usr/bin/env bash
# Train one run on all hosts of a Cloud TPU slice, from a machine with gcloud, with one command on every host:
#
#   scripts/tpu_pod.sh NAME ZONE install REPOSITORY [REVISION]    clone and install the package on every host
#   scripts/tpu_pod.sh NAME ZONE train --config FILE [...]        start, or go on: the first host keeps the run folder
#   scripts/tpu_pod.sh NAME ZONE stop                             SIGTERM: saves a checkpoint and ends
#   scripts/tpu_pod.sh NAME ZONE log                              the last lines of every host
#   scripts/tpu_pod.sh --dry-run NAME ZONE ...                    prints the command and runs nothing
#
# Hosts have what is committed in REPOSITORY, an address or a path that all of them see, and nothing of this checkout:
# push a config that is new or changed, and install again, before it is trained.
#
# JAX finds the other hosts by itself. Paths in the arguments are those of the hosts; a --workdir that outlives the slice
# must lie on a disk that is mounted on the first host. Training goes on when this terminal is closed.
set -euo pipefail
case ${1:-} in -h | --help)
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exit
  ;;
esac

usage="scripts/tpu_pod.sh [--dry-run] NAME ZONE install REPOSITORY [REVISION] | train --config FILE [...] | stop | log"
refuse() {
  echo "error: $1; allowed: $usage" >&2
  exit 2
}

dry=""
if [ "${1:-}" = --dry-run ]; then
  dry=yes
  shift
fi
[ $# -ge 3 ] && [ -n "$1" ] && [ -n "$2" ] || refuse "name, zone or what to do is missing"
name=$1 zone=$2 what=$3
shift 3
case $what in
install)
  [ $# -ge 1 ] && [ $# -le 2 ] && [ -n "$1" ] || refuse "install takes a repository and perhaps a revision"
  printf -v source '%q' "$1"
  printf -v revision '%q' "${2:-HEAD}"
  # Made absolute, as git reads a relative path from inside the clone once there is one.
  told="source=$source && { [ ! -d \"\$source\" ] || source=\$(realpath \"\$source\"); }"
  told+=" && if [ -d positionbias ]; then git -C positionbias remote set-url origin \"\$source\"; else"
  told+=" git clone -q \"\$source\" positionbias; fi && cd positionbias && git fetch -q origin $revision"
  told+=" && git checkout -q FETCH_HEAD && { [ -d .venv ] || python3 -m venv .venv; }"
  told+=" && version=\$(.venv/bin/python -c \"import sys; print(*sys.version_info[:2], sep=str())\")"
  told+=" && pins=scripts/constraints-py\$version.txt && { [ -e \"\$pins\" ] || pins=scripts/constraints-py312.txt; }"
  told+=" && .venv/bin/pip install -q -c \"\$pins\" -e \".[tpu]\""
  ;;
train)
  [ $# -ge 1 ] || refuse "train takes what positionbias.train does"
  case " $* " in *" --config "* | *" --config="*) ;; *) refuse "there is no --config behind train" ;; esac
  case " $* " in *" --processes"*) refuse "--processes is not allowed behind train, as hosts find each other" ;; esac
  printf -v arguments ' %q' "$@"
  told="cd positionbias && { setsid nohup .venv/bin/python -m positionbias.train$arguments --processes auto"
  told+=" >>pod.log 2>&1 </dev/null & } && sleep 5 && tail -n 5 pod.log"
  ;;
stop)
  [ $# -eq 0 ] || refuse "stop takes nothing more"
  told='pkill -TERM -f "[p]ositionbias.train"' # the brackets keep this very command from being found
  ;;
log)
  [ $# -eq 0 ] || refuse "log takes nothing more"
  told="tail -n 5 positionbias/pod.log"
  ;;
*) refuse "'$what' is not allowed" ;;
esac
command=(gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all)
if [ -n "$dry" ]; then
  # As it could be typed: what hosts are told in quotes, a step a line.
  next=$' &&\n' quote="'\\''"
  lines=${told//\'/"$quote"}
  lines=${lines// && /"$next"}
  printf '%q ' "${command[@]}"
  printf "%s'\n%s'\n" --command= "$lines"
else
  exec "${command[@]}" --command="$told"
fi
