#!/usr/bin/env bash
# Trains on NVIDIA GPUs under Slurm, with one process for each GPU.
#
#     NODES=4 ACCOUNT=mine launch/slurm/submit.sh [--dry-run] --config=configs/croc_vits16_coco.py --workdir=runs/coco
#
# All other flags go to launch/pretrain.py. --dry-run prints the batch script and submits nothing. When the time is nearly
# up, or a more urgent job needs the nodes, the run saves and exits with status 75, and the job is queued again and resumes.
# The workdir must be on a disk that all nodes share.
set -euo pipefail

submit="sbatch" flags=()
for flag in "$@"; do
    if [[ $flag == --dry[-_]run ]]; then submit="cat"; else flags+=("$flag"); fi
done
if ((${#flags[@]} == 0)); then
    echo "error: no flags for launch/pretrain.py: add --config=configs/NAME.py --workdir=DIR" >&2
    exit 1
fi
gpus=${GPUS_PER_NODE:-8} cpus=${CPUS_PER_GPU:-8} logs=${LOGS:-logs}
[[ $submit == cat ]] || mkdir -p "$logs" # Slurm does not create it, and fails

$submit <<EOF
#!/usr/bin/env bash
#SBATCH --job-name=${JOB_NAME:-croc} --nodes=${NODES:-1} --time=${TIME_LIMIT:-24:00:00}
#SBATCH --ntasks-per-node=$gpus --gpus-per-node=$gpus --cpus-per-task=$cpus
${PARTITION:+#SBATCH --partition=$PARTITION}
${ACCOUNT:+#SBATCH --account=$ACCOUNT}
#SBATCH --signal=TERM@${GRACE_SECONDS:-120} --requeue --open-mode=append --output=$logs/%x-%j.log
trap : TERM # the shell outlives the run, to see its status
status=0
# All processes save and exit at the same step: the first exit must not kill the others. One that hangs gets 5 minutes.
srun --cpus-per-task=$cpus --kill-on-bad-exit=0 --wait=300 \\
    $(printf '%q ' "${PYTHON:-python}" launch/pretrain.py "${flags[@]}")|| status=\$?
# 143: SIGTERM arrived before the run could handle it. Others above 130 (Ctrl-C): killed, or aborted as a peer is gone; three times.
# A job that was cancelled is not RUNNING, and stays cancelled.
if ((status == 75 || status == 143 || (status > 130 && \${SLURM_RESTART_COUNT:-0} < 3))) && [[ \$(squeue -h -j "\$SLURM_JOB_ID" -o %T || echo RUNNING) == RUNNING ]]; then
    scontrol requeue "\$SLURM_JOB_ID"
fi
exit "\$status"
EOF
