#!/usr/bin/env bash
# Trains on a Cloud TPU slice (v4, v5e or v6e, one host to many): requests it, starts the run, waits, and deletes it.
#
#     ZONE=europe-west4-b FILESTORE=10.0.0.2:/croc launch/tpu/submit.sh [--dry-run] \
#         --config=configs/croc_vits16_coco.py --workdir=/mnt/croc/runs/coco --config.data.sources=coco:/mnt/croc/coco
#
# All other flags go to launch/pretrain.py on every host, at the state of the last commit. --dry-run prints the commands and
# runs none. FILESTORE is an NFS share for workdir, images and logs, mounted at /mnt/croc. Run this where it can stay for
# days (tmux on a small machine): it requests a preempted slice again. systemd restarts a run that fails, 20 times a day.
set -euo pipefail

flags=() dry_run=
for flag in "$@"; do
    if [[ $flag == --dry[-_]run ]]; then dry_run=yes; else flags+=("$flag"); fi
done
if [[ ${flags[*]} != *--workdir=/mnt/croc/* ]]; then
    echo "error: add --config=configs/NAME.py --workdir=/mnt/croc/DIR: elsewhere the run would be lost with its slice" >&2
    exit 1
fi
name=${JOB_NAME:-croc} accelerator=${ACCELERATOR:-v5litepod-256} archive=${TMPDIR:-/tmp}/${JOB_NAME:-croc}.tar
SPOT=${SPOT-yes} POLL_SECONDS=${POLL_SECONDS:-60} # SPOT= requests a slice that is not preempted
place=(--zone="${ZONE:?set it to the zone of the slice}" ${PROJECT:+--project="$PROJECT"})
case $accelerator in
v4-*) image=tpu-ubuntu2204-base ;;
v5litepod-*) image=v2-alpha-tpuv5-lite ;;
*) image=v2-alpha-tpu${accelerator%%-*} ;;
esac
# On each host, unless it runs already. uv brings a newer Python than the image's.
start="systemctl is-active -q croc && exit; set -e; sudo apt-get -qq install -y nfs-common; sudo mkdir -p /mnt/croc
mountpoint -q /mnt/croc || sudo mount -t nfs ${FILESTORE:?set it to ADDRESS:/SHARE} /mnt/croc
mkdir -p croc; tar -xf croc.tar -C croc; cd croc; python3 -m pip install -q uv; python3 -m uv venv -q --python 3.11
python3 -m uv pip install -q -c constraints/constraints-3.11.txt -e . 'jax[tpu]'; log=append:/mnt/croc/$name-\$HOSTNAME.log
sudo systemd-run --unit=croc --uid=\$USER --working-directory=\$PWD -p StandardOutput=\$log -p StandardError=\$log \\
  -p TimeoutStopSec=120 -p Restart=on-failure -p RestartSec=30 -p StartLimitIntervalSec=1d -p StartLimitBurst=20 .venv/bin/python $(printf '%q ' launch/pretrain.py "${flags[@]}")"

call() { # a command, or its text
    if [[ $dry_run ]]; then printf '%q ' "$@"; echo; else "$@"; fi
}
queue() { call gcloud compute tpus queued-resources "$1" "$name" "${place[@]}" "${@:2}"; }
on_hosts() { call gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker=all --command="$1"; }
state() { gcloud compute tpus queued-resources describe "$name" "${place[@]}" --format='value(state.state)' || :; }
prepare() { call gcloud compute tpus tpu-vm scp "$archive" "$name:croc.tar" "${place[@]}" --worker=all && on_hosts "$start"; }

call git archive --format=tar --output="$archive" HEAD
trap 'queue delete --force --quiet' EXIT # whatever happens, nothing is left that costs money
trap 'exit 130' INT TERM
while :; do
    queue create --node-id="$name" --accelerator-type="$accelerator" --runtime-version="$image" ${SPOT:+--spot}
    until [[ $dry_run || $(state) =~ ^(ACTIVE|SUSPENDED|FAILED)$ ]]; do sleep "$POLL_SECONDS"; done
    prepare || { sleep "$POLL_SECONDS"; prepare || :; } # a new slice may not answer at once, or be gone already
    while [[ $dry_run || $(state) =~ ^(ACTIVE|)$ ]]; do # no answer says nothing
        if ended=$(on_hosts 'systemctl is-active croc || :'); then
            if [[ $dry_run ]]; then echo "$ended" && exit; fi
            grep -qwE 'active|activating' <<< "$ended" || { grep -qw failed <<< "$ended" && exit 1; exit 0; }
        fi
        sleep "$POLL_SECONDS"
    done
    queue delete --force --quiet # preempted: request it again
done
