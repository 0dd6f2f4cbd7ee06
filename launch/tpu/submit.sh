#!/usr/bin/env bash
# Trains on a Cloud TPU slice (v4, v5e or v6e, one host to many), which it asks for in Google's queue and gives back at the
# end.
#
#     ZONE=europe-west4-b FILESTORE=10.0.0.2:/croc launch/tpu/submit.sh [--dry-run] \
#         --config=configs/croc_vits16_coco.py --workdir=/mnt/croc/runs/coco --config.data.sources=coco:/mnt/croc/coco
#
# All that follows goes to launch/pretrain.py on every host. --dry-run prints the commands in their order, and does nothing.
# This script stays to watch: run it where it may stay for days (tmux on a small machine). A slice that is taken away is
# asked for again, and the run goes on from its last checkpoint. What is committed here is what runs there.
set -euo pipefail

# All of these can be set in the environment.
JOB_NAME=${JOB_NAME:-croc}
ZONE=${ZONE:-}
PROJECT=${PROJECT:-} # gcloud's own, if empty
ACCELERATOR=${ACCELERATOR:-v5litepod-256} # v4-512 and v5litepod-256 and v6e-256 are 256 chips each
SPOT=${SPOT-yes} # cheaper, and may be taken away; empty for no
# An NFS share (Filestore) that all hosts mount at /mnt/croc, for the workdir and the images.
FILESTORE=${FILESTORE:-}
POLL_SECONDS=${POLL_SECONDS:-60}
PROGRAM=${PROGRAM:-launch/pretrain.py}

dry_run=
if [[ ${1:-} == --dry-run ]]; then
    dry_run=yes
    shift
fi
if (($# == 0)); then
    echo "error: no flags for $PROGRAM: add --config=configs/NAME.py --workdir=/mnt/croc/DIR" >&2
    exit 1
fi
if [[ -z $ZONE || -z $FILESTORE ]]; then
    echo "error: set ZONE to the zone of the slice, and FILESTORE=ADDRESS:/SHARE to the disk of workdir and images" >&2
    exit 1
fi
case $ACCELERATOR in
v4-*) image=tpu-ubuntu2204-base ;;
v5litepod-*) image=v2-alpha-tpuv5-lite ;;
v6e-*) image=v2-alpha-tpuv6e ;;
*)
    echo "error: ACCELERATOR=$ACCELERATOR: choose v4-N, v5litepod-N or v6e-N" >&2
    exit 1
    ;;
esac

# Runs a command, or prints it.
call() {
    if [[ $dry_run ]]; then
        printf '%q ' "$@" | sed 's/ $/\n/'
    else
        "$@"
    fi
}
place=(--zone="$ZONE" ${PROJECT:+--project="$PROJECT"})
queue() { call gcloud compute tpus queued-resources "$1" "$JOB_NAME" "${place[@]}" "${@:2}"; }
hosts() { call gcloud compute tpus tpu-vm ssh "$JOB_NAME" "${place[@]}" --worker="$1" --command="$2"; }
give_back() { queue delete --force --quiet; }

# The image's Python is too old: uv brings another, and the versions that the tests passed with.
setup="set -e; sudo apt-get -qq install -y nfs-common
sudo mkdir -p /mnt/croc; mountpoint -q /mnt/croc || sudo mount -t nfs $FILESTORE /mnt/croc
rm -rf croc; mkdir croc; tar -xf croc.tar -C croc; cd croc
python3 -m pip install -q uv; python3 -m uv venv -q --python 3.11
python3 -m uv pip install -q -c constraints/constraints-3.11.txt -e . 'jax[tpu]'"
# ssh to all hosts does not tell whose status it returns: each host leaves its own in a file.
train="cd croc; .venv/bin/python $(printf '%q ' "$PROGRAM" "$@"); echo \$? > status"

state() { gcloud compute tpus queued-resources describe "$JOB_NAME" "${place[@]}" --format='value(state.state)'; }
wait_for_slice() {
    queue create --node-id="$JOB_NAME" --accelerator-type="$ACCELERATOR" --runtime-version="$image" ${SPOT:+--spot}
    local now=
    until [[ $dry_run || $now == ACTIVE ]]; do
        sleep "$POLL_SECONDS"
        now=$(state)
        if [[ $now == FAILED || $now == SUSPENDED ]]; then
            echo "error: the request is $now; gcloud compute tpus queued-resources describe $JOB_NAME says why" >&2
            return 1
        fi
    done
}

archive=${TMPDIR:-/tmp}/$JOB_NAME.tar
# Whatever happens, nothing is left that costs money.
trap 'call rm -f "$archive"; give_back' EXIT
trap 'exit 130' INT TERM
call git archive --format=tar --output="$archive" HEAD
prepare() {
    call gcloud compute tpus tpu-vm scp "$archive" "$JOB_NAME:croc.tar" "${place[@]}" --worker=all && hosts all "$setup"
}
while :; do
    wait_for_slice
    until prepare; do
        [[ $(state) != ACTIVE ]] || exit 1
        give_back
        wait_for_slice
    done
    while :; do
        hosts all "$train" || : # what counts is the file
        [[ ! $dry_run ]] || exit 0
        # 75 asks for another start, and a file that cannot be read for a look at the slice: it may be gone, or just the
        # connection to it.
        status=$(hosts 0 'cat croc/status && rm croc/status') || status=75
        [[ $status == 75 ]] || exit "$status"
        [[ $(state) == ACTIVE ]] || break
    done
    echo "$JOB_NAME was taken away; it is asked for again" >&2
    give_back
done
