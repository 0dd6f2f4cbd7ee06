#!/usr/bin/env bash
# Trains on NVIDIA GPUs under Slurm, with one process for each GPU.
#
#     NODES=4 ACCOUNT=mine launch/slurm/submit.sh [--dry-run] --config=configs/croc_vits16_coco.py --workdir=runs/coco
#
# All that follows goes to launch/pretrain.py. --dry-run prints the command that would be given to Slurm, and does nothing.
# Shortly before the time limit, or when a more urgent job needs the nodes, the run saves and exits with 75; its job then
# queues again and goes on. A lost node queues the job again, too. A run that was killed starts again in the same job, a few
# times. The workdir must be on a disk that all nodes share.
set -euo pipefail

# All of these can be set in the environment.
JOB_NAME=${JOB_NAME:-croc}
NODES=${NODES:-1}
GPUS_PER_NODE=${GPUS_PER_NODE:-8}
CPUS_PER_GPU=${CPUS_PER_GPU:-8} # they decode and crop
MEMORY_PER_NODE=${MEMORY_PER_NODE:-} # what the cluster gives by default, if empty; 0 is all
TIME_LIMIT=${TIME_LIMIT:-24:00:00}
GRACE_SECONDS=${GRACE_SECONDS:-120} # from the notice to the time limit; the last step and a save must fit
RESTARTS=${RESTARTS:-3} # in one job, of a run that was killed, as when memory runs out
PARTITION=${PARTITION:-} # the default one, if empty
ACCOUNT=${ACCOUNT:-}
LOGS=${LOGS:-logs}
PYTHON=${PYTHON:-python}
PROGRAM=${PROGRAM:-launch/pretrain.py}

# What the job itself does: Slurm starts this file again on the first node.
if [[ ${1:-} == --in-job ]]; then
    # A preempted job's shell is told to end, too; it has to outlive the run to see its status.
    trap : TERM USR1
    while :; do
        status=0
        "${@:2}" || status=$?
        # A job that scancel has ended is not RUNNING any more, and stays ended; a controller that is busy says nothing.
        state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) || state=
        [[ -z $state || $state == RUNNING ]] || break
        # It asks for another start: by itself, or as SIGUSR1 or SIGTERM came before it could listen.
        if ((status == 75 || status == 138 || status == 143)); then
            scontrol requeue "$SLURM_JOB_ID"
            break
        fi
        # Killed, or aborted as another process was; 130 is somebody's wish.
        ((status > 128 && status != 130 && RESTARTS-- > 0)) || break
        echo "the run ended with status $status and starts again" >&2
    done
    exit "$status"
fi

dry_run=
for flag in "$@"; do
    shift
    # Wherever it stands: what only looks must never submit.
    if [[ $flag == --dry[-_]run ]]; then dry_run=yes; else set -- "$@" "$flag"; fi
done
if (($# == 0)); then
    echo "error: no flags for $PROGRAM: add --config=configs/NAME.py --workdir=DIR" >&2
    exit 1
fi

run=(
    srun
    # srun does not take this over from sbatch.
    --cpus-per-task="$CPUS_PER_GPU"
    # Processes agree on their end by themselves: none is cut off while it saves, and one that hangs gets five minutes.
    --kill-on-bad-exit=0 --wait=300
    "$PYTHON" "$PROGRAM" "$@"
)
submit=(
    sbatch
    --job-name="$JOB_NAME" --nodes="$NODES" --time="$TIME_LIMIT"
    --ntasks-per-node="$GPUS_PER_NODE" --gpus-per-node="$GPUS_PER_NODE" --cpus-per-task="$CPUS_PER_GPU"
    ${MEMORY_PER_NODE:+--mem="$MEMORY_PER_NODE"} ${PARTITION:+--partition="$PARTITION"} ${ACCOUNT:+--account="$ACCOUNT"}
    # The notice goes to the processes of the run, not to the shell of the job.
    --signal="USR1@$GRACE_SECONDS" --requeue
    # Each start of a job adds to the same log.
    --output="$LOGS/%x-%j.log" --open-mode=append
    "$0" --in-job "${run[@]}"
)
if [[ $dry_run ]]; then
    printf '%q ' "${submit[@]}" | sed 's/ $/\n/'
else
    mkdir -p "$LOGS" # Slurm does not make it, and fails
    "${submit[@]}"
fi
