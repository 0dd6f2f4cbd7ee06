#!/usr/bin/env bash
# Trains on LUMI-G (MI250X), with one process for each of the 8 dies (GCDs) of a node, in a ROCm container.
#
#     NODES=8 ACCOUNT=project_465000000 launch/lumi/submit.sh [--dry-run] --config=configs/croc_vits16_coco.py \
#         --workdir=/scratch/project_465000000/coco
#
# All that follows goes to launch/pretrain.py. --dry-run prints the command that would be given to Slurm, and does nothing.
# Ends and new starts are as in launch/slurm/submit.sh.
#
# Once, on a login node, install into a virtual environment on top of the container's Python 3.12:
#
#     singularity exec "$SIF" python -m venv "$VENV"
#     singularity exec "$SIF" "$VENV/bin/pip" install -c constraints/constraints-3.11.txt -e . jax-rocm7-plugin==0.10.2
#
# Assumed, and not tried on LUMI:
# - constraints-3.11.txt pins jax 0.10.2, and jax-rocm7-plugin and jax-rocm7-pjrt 0.10.2 exist for Python 3.11 and 3.12:
#   this pair is used; all else that it pins can be installed on Python 3.12, too. constraints-3.12.txt pins jax
#   0.12.0.1, whose extra rocm7-local asks for a plugin 0.12.0.1, and the newest is 0.12.0: that extra cannot be
#   installed with this pin (jax 0.12.0 with plugin 0.12.0 can).
# - The container has ROCm 7 and RCCL with the plugin for LUMI's network (aws-ofi), and LUMI's driver runs ROCm 7.
set -euo pipefail

# All of these can be set in the environment.
JOB_NAME=${JOB_NAME:-croc}
NODES=${NODES:-1}
PROCESSES_PER_NODE=${PROCESSES_PER_NODE:-8} # 1 for a program that uses one device, such as launch/evaluate.py
TIME_LIMIT=${TIME_LIMIT:-24:00:00}
GRACE_SECONDS=${GRACE_SECONDS:-120} # from the notice to the time limit; the last step and a save must fit
RESTARTS=${RESTARTS:-3} # in one job, of a run that was killed, as when memory runs out
PARTITION=${PARTITION:-standard-g} # whole nodes: the binding below needs them
ACCOUNT=${ACCOUNT:-}
LOGS=${LOGS:-logs}
SIF=${SIF:-/appl/local/laifs/containers/lumi-multitorch-u24r70f21m50t210-20260415_130625/lumi-multitorch-full-u24r70f21m50t210-20260415_130625.sif}
VENV=${VENV:-$PWD/.venv-lumi}
PROGRAM=${PROGRAM:-launch/pretrain.py}

# What the job itself does: Slurm starts this file again on the first node.
if [[ ${1:-} == --in-job ]]; then
    # Shows the container LUMI's file systems and network.
    set +u # modules read variables that are not set
    module use /appl/local/laifs/modules
    module load lumi-aif-singularity-bindings
    set -u
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
if [[ -z $ACCOUNT ]]; then
    echo "error: LUMI runs no job without a project: set ACCOUNT=project_NUMBER" >&2
    exit 1
fi

settings=(
    # RCCL would try the management network, which no data may take; these are the four Slingshot cards.
    NCCL_SOCKET_IFNAME=hsn
    # A network card hangs on each GPU module: data goes from one to the other without a stop in host memory.
    NCCL_NET_GDR_LEVEL=PHB
    # MIOpen locks its tables of kernels, which the parallel file system of home does not allow.
    MIOPEN_USER_DB_PATH=/tmp
    MIOPEN_CUSTOM_CACHE_DIR=/tmp
)
# The cores of process i are those of the NUMA domain that GCD i hangs on: an order that follows no rule. The system keeps
# the first core of each eight, so 7 remain.
masks=0xfe000000000000,0xfe00000000000000,0xfe0000,0xfe000000,0xfe,0xfe00,0xfe00000000,0xfe0000000000
run=(
    env "${settings[@]}"
    srun --cpu-bind="mask_cpu:$masks"
    # Processes agree on their end by themselves: none is cut off while it saves, and one that hangs gets five minutes.
    --kill-on-bad-exit=0 --wait=300
    singularity exec "$SIF" "$VENV/bin/python" "$PROGRAM" "$@"
)
submit=(
    sbatch
    --job-name="$JOB_NAME" --nodes="$NODES" --time="$TIME_LIMIT" --partition="$PARTITION" --account="$ACCOUNT"
    # Each process sees all GCDs, as RCCL needs to, and takes the one of its local number. 480 GB is what a node offers.
    --ntasks-per-node="$PROCESSES_PER_NODE" --gpus-per-node=8 --mem=480G
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
