#!/usr/bin/env bash
# Submit work to SLURM from a checkout that all nodes see:
#
#   scripts/slurm.sh sweep TASKS [SBATCH OPTIONS] -- --config FILE [...]   an array of TASKS jobs that share a sweep's cells
#   scripts/slurm.sh train NODES [SBATCH OPTIONS] -- --config FILE [...]   one run, a process on each of NODES nodes
#   scripts/slurm.sh --dry-run ...                                         prints the job and submits nothing
#
# The config has to be there, relative to the checkout, and a sweep to have as many cells as there are TASKS, or more.
# What stands before -- goes to sbatch (--partition, --gres=gpu:1, --time, --mem ...), what stands behind it to
# positionbias. Give --workdir, or the folder is sweeps/... or runs/... in the checkout. A job that is killed or runs out
# of time goes on when the same command is given again; one that SLURM may preempt can be given --requeue.
set -euo pipefail
case ${1:-} in -h | --help)
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exit
  ;;
esac
# shellcheck source=scripts/environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

usage="scripts/slurm.sh [--dry-run] sweep TASKS|train NODES [SBATCH OPTIONS] -- --config FILE [...]"
refuse() {
  echo "error: $1; allowed: $usage" >&2
  exit 2
}

dry=""
if [ "${1:-}" = --dry-run ]; then
  dry=yes
  shift
fi
kind=${1:-} count=${2:-}
case $kind in sweep | train) ;; *) refuse "'$kind' is neither sweep nor train" ;; esac
[[ $count =~ ^[1-9][0-9]{0,4}$ ]] || refuse "'$count' is not allowed as a number of tasks or nodes"
shift 2
options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  options+=("$1")
  shift
done
[ "${1:-}" = -- ] || refuse "there is no -- before what positionbias is told"
shift
[ $# -gt 0 ] || refuse "positionbias is told nothing behind --"
# Told now, and not by a job that has waited for its turn.
config="" before=""
for given in "$@"; do
  case $kind:${given%%=*} in
  sweep:--cells | sweep:--status | train:--processes)
    refuse "${given%%=*} is not allowed behind --, as jobs share out their work themselves"
    ;;
  esac
  case $given in --config=*) config=${given#--config=} ;; esac
  [ "$before" != --config ] || config=$given
  before=$given
done
[ -n "$config" ] || refuse "there is no --config behind --"
case $config in *.py:*) config=${config%%.py:*}.py ;; esac
[ -f "$config" ] || refuse "there is no file '$config' in $PWD"
if [ "$kind" = sweep ]; then
  for given in ${options[@]+"${options[@]}"}; do
    case $given in
    "--array=1-$count" | "--array=1-$count%"*) ;;
    --array* | -a*) refuse "'$given' is not allowed with $count tasks, which are --array=1-$count" ;;
    esac
  done
fi

# Installed once here, so that jobs that start together do not all install.
if [ -z "$dry" ]; then
  prepare ""
else
  find_environment ""
fi
if [ "$kind" = sweep ]; then
  if [ -z "$dry" ] || "$python" -c 'import ml_collections' 2>/dev/null; then
    # What a job would be refused for, fewer cells than tasks say, is told by whom it would be refused.
    "$python" -m positionbias.sweep "$@" --cells "1/$count" --status >/dev/null || exit
  else
    echo "the package is not installed here, so cells were not counted" >&2
  fi
fi
printf -v told ' %q' "$@"
printf -v where '%q' "$PWD"
printf -v run '%q -m positionbias' "$python"
# Two minutes before the time is over, SLURM tells the steps of a job, which save and end.
if [ "$kind" = sweep ]; then
  options=(--job-name=positionbias --array="1-$count" --signal=TERM@120 "${options[@]}")
  # shellcheck disable=SC2016 # the job reads its number
  job="srun $run.sweep$told --cells \"\$SLURM_ARRAY_TASK_ID/$count\""
else
  options=(--job-name=positionbias --nodes="$count" --ntasks-per-node=1 --signal=TERM@120 "${options[@]}")
  job="srun --kill-on-bad-exit=1 $run.train$told --processes auto"
fi
script="#!/usr/bin/env bash
cd $where || exit 1
$job"
if [ -n "$dry" ]; then
  printf 'sbatch'
  printf ' %q' "${options[@]}"
  printf '\n%s\n' "$script"
else
  sbatch "${options[@]}" <<<"$script"
fi
