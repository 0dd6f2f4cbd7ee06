#!/usr/bin/env bash
# Trains on LUMI-G (MI250X), with one process for each of the 8 dies (GCDs) of a node, in a ROCm container.
#
#     NODES=8 ACCOUNT=project_465000000 launch/lumi/submit.sh [--dry-run] --config=configs/croc_vits16_coco.py \
#         --workdir=/scratch/project_465000000/coco
#
# All other flags go to launch/pretrain.py; --dry-run, time limits and preemption are as in launch/slurm/submit.sh. Once, on
# a login node, create a virtual environment on top of the container's Python (ROCm 7, RCCL with the aws-ofi plugin):
#
#     singularity exec "$SIF" python -m venv "$VENV"
#     singularity exec "$SIF" "$VENV/bin/pip" install -c constraints/constraints-3.11.txt -e . jax-rocm7-plugin==0.10.2
set -euo pipefail

submit="sbatch" flags=()
for flag in "$@"; do
    if [[ $flag == --dry[-_]run ]]; then submit="cat"; else flags+=("$flag"); fi
done
if ((${#flags[@]} == 0)); then
    echo "error: no flags for launch/pretrain.py: add --config=configs/NAME.py --workdir=DIR" >&2
    exit 1
fi
version=u24r70f21m50t210-20260415_130625
sif=${SIF:-/appl/local/laifs/containers/lumi-multitorch-$version/lumi-multitorch-full-$version.sif}
logs=${LOGS:-logs}
# The seven cores that are free for process i, next to its GCD: the order of NUMA domains follows no rule.
masks=0xfe000000000000,0xfe00000000000000,0xfe0000,0xfe000000,0xfe,0xfe00,0xfe00000000,0xfe0000000000
[[ $submit == cat ]] || mkdir -p "$logs" # Slurm does not create it, and fails

$submit <<EOF
#!/usr/bin/env bash
#SBATCH --job-name=${JOB_NAME:-croc} --nodes=${NODES:-1} --time=${TIME_LIMIT:-24:00:00}
#SBATCH --partition=${PARTITION:-standard-g} --account=${ACCOUNT:?set it to project_NUMBER}
#SBATCH --ntasks-per-node=8 --gpus-per-node=8 --mem=480G
#SBATCH --signal=TERM@${GRACE_SECONDS:-120} --requeue --open-mode=append --output=$logs/%x-%j.log
# LUMI's file systems and network, for the container.
module use /appl/local/laifs/modules
module load lumi-aif-singularity-bindings
# RCCL over the Slingshot cards, each of which hangs on a GPU; MIOpen's lock files do not work on Lustre.
export NCCL_SOCKET_IFNAME=hsn NCCL_NET_GDR_LEVEL=PHB MIOPEN_USER_DB_PATH=/tmp MIOPEN_CUSTOM_CACHE_DIR=/tmp
trap : TERM # the shell outlives the run, to see its status
status=0
srun --cpu-bind=mask_cpu:$masks --kill-on-bad-exit=0 --wait=300 singularity exec $(printf %q "$sif") \\
    $(printf '%q ' "${VENV:-$PWD/.venv-lumi}/bin/python" launch/pretrain.py "${flags[@]}")|| status=\$?
if ((status == 75 || status == 143 || (status > 130 && \${SLURM_RESTART_COUNT:-0} < 3))) && [[ \$(squeue -h -j "\$SLURM_JOB_ID" -o %T || echo RUNNING) == RUNNING ]]; then
    scontrol requeue "\$SLURM_JOB_ID"
fi
exit "\$status"
EOF
