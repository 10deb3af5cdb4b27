#!/usr/bin/env bash
# Submit work to SLURM from a checkout that all nodes see:
#
#   scripts/slurm.sh sweep TASKS [SBATCH OPTIONS] -- --config FILE [...]   an array of TASKS jobs that share a sweep's cells
#   scripts/slurm.sh train NODES [SBATCH OPTIONS] -- --config FILE [...]   one run, a process on each of NODES nodes
#   scripts/slurm.sh --dry-run ...                                         prints the job and submits nothing
#
# What stands before -- goes to sbatch (--partition, --gres=gpu:1, --time, --mem ...), what stands behind it to
# positionbias. Give --workdir, or the folder is sweeps/... or runs/... in the checkout. A job that is killed or runs out
# of time goes on when the same command is given again; one that SLURM may preempt can be given --requeue.
set -euo pipefail
# shellcheck source=scripts/environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

usage="scripts/slurm.sh [--dry-run] sweep TASKS|train NODES [SBATCH OPTIONS] -- --config FILE [...]"
dry=""
if [ "${1:-}" = --dry-run ]; then
  dry=yes
  shift
fi
kind=${1:-} count=${2:-}
case $kind in sweep | train) ;; *) fail "'$kind' is neither sweep nor train; allowed: $usage" ;; esac
[[ $count =~ ^[1-9][0-9]{0,4}$ ]] || fail "'$count' is not allowed as a number of tasks or nodes; allowed: $usage"
shift 2
options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  options+=("$1")
  shift
done
[ "${1:-}" = -- ] || fail "there is no -- before what positionbias is told; allowed: $usage"
shift
[ $# -gt 0 ] || fail "positionbias is told nothing behind --; allowed: $usage"
# Told now, and not by a job that has waited for its turn.
case " $* " in *" --config "* | *" --config="*) ;; *) fail "there is no --config behind --; allowed: $usage" ;; esac
for given in "$@"; do
  case $kind:${given%%=*} in
  sweep:--cells | sweep:--status | train:--processes)
    fail "${given%%=*} is not allowed behind --, as jobs share out their work themselves; allowed: $usage"
    ;;
  esac
done
if [ "$kind" = sweep ]; then
  for given in ${options[@]+"${options[@]}"}; do
    case $given in
    "--array=1-$count" | "--array=1-$count%"*) ;;
    --array* | -a*) fail "'$given' is not allowed with $count tasks, which are --array=1-$count; allowed: $usage" ;;
    esac
  done
fi

# Installed once here, so that jobs that start together do not all install.
if [ -z "$dry" ]; then
  prepare ""
else
  find_environment ""
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
