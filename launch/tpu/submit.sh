#!/usr/bin/env bash
# Trains on a Cloud TPU slice (v4, v5e or v6e, one host to many), which it asks for in Google's queue and gives back at the
# end.
#
#     ZONE=europe-west4-b FILESTORE=10.0.0.2:/croc launch/tpu/submit.sh [--dry-run] \
#         --config=configs/croc_vits16_coco.py --workdir=/mnt/croc/runs/coco --config.data.sources=coco:/mnt/croc/coco
#
# All that follows goes to launch/pretrain.py on every host. --dry-run prints the commands in their order, and does nothing.
# This script stays to watch: run it where it may stay for days (tmux on a small machine). The run does not need it: a lost
# connection changes nothing there. A slice that is taken away is asked for again, and the run goes on from its last
# checkpoint. What is committed here is what runs there; each host writes its log to LOGS.
set -euo pipefail

# All of these can be set in the environment.
JOB_NAME=${JOB_NAME:-croc}
ZONE=${ZONE:-}
PROJECT=${PROJECT:-} # gcloud's own, if empty
ACCELERATOR=${ACCELERATOR:-v5litepod-256} # v4-512 and v5litepod-256 and v6e-256 are 256 chips each
SPOT=${SPOT-yes} # cheaper, and may be taken away; empty for no
# An NFS share (Filestore) that all hosts mount at /mnt/croc, for the workdir and the images.
FILESTORE=${FILESTORE:-}
LOGS=${LOGS:-/mnt/croc/logs}
POLL_SECONDS=${POLL_SECONDS:-60}
RESTARTS=${RESTARTS:-3} # of a run that was killed, as when memory runs out
PROGRAM=${PROGRAM:-launch/pretrain.py}

dry_run='' workdir='' before=''
for flag in "$@"; do
    shift
    # Wherever it stands: what only looks must never submit.
    if [[ $flag == --dry[-_]run ]]; then dry_run=yes; else set -- "$@" "$flag"; fi
    if [[ $flag =~ ^--?workdir=(.*)$ ]]; then workdir=${BASH_REMATCH[1]}; fi
    if [[ $before =~ ^--?workdir$ ]]; then workdir=$flag; fi
    before=$flag
done
if (($# == 0)); then
    echo "error: no flags for $PROGRAM: add --config=configs/NAME.py --workdir=/mnt/croc/DIR" >&2
    exit 1
fi
if [[ -z $ZONE || -z $FILESTORE ]]; then
    echo "error: set ZONE to the zone of the slice, and FILESTORE=ADDRESS:/SHARE to the disk of workdir and images" >&2
    exit 1
fi
if [[ $workdir && $workdir != /mnt/croc/?* ]]; then
    echo "error: --workdir=$workdir would be lost with the slice: choose a folder of the share, /mnt/croc/DIR" >&2
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
# Without these, a connection to a host that is gone hangs.
alive=(-oConnectTimeout=30 -oServerAliveInterval=30)
queue() { call gcloud compute tpus queued-resources "$1" "$JOB_NAME" "${place[@]}" "${@:2}"; }
on_hosts() {
    call gcloud compute tpus tpu-vm ssh "$JOB_NAME" "${place[@]}" --worker=all "${alive[@]/#/--ssh-flag=}" --command="$1"
}
copy() {
    call gcloud compute tpus tpu-vm scp "$1" "$JOB_NAME:$2" "${place[@]}" --worker=all "${alive[@]/#/--scp-flag=}"
}
give_back() { queue delete --force --quiet; }

# On each host. Its output and status go to files, and it holds a lock while it runs, so that none starts beside another.
train=".venv/bin/python $(printf '%q ' "$PROGRAM" "$@")>> $(printf %q "$LOGS/$JOB_NAME")-\$HOSTNAME.log 2>&1"
# The image's Python is too old: uv brings another, and the versions that the tests passed with.
start="exec 9> croc.lock; flock -n 9 || exit 0 # it runs
set -e; rm -f croc.status; sudo apt-get -qq install -y nfs-common
sudo mkdir -p /mnt/croc; mountpoint -q /mnt/croc || sudo mount -t nfs $FILESTORE /mnt/croc
mkdir -p $(printf %q "$LOGS"); rm -rf croc; mkdir croc; tar -xf croc.tar -C croc; cd croc
python3 -m pip install -q uv; python3 -m uv venv -q --python 3.11
python3 -m uv pip install -q -c constraints/constraints-3.11.txt -e . 'jax[tpu]'
setsid nohup bash -c $(printf %q "$train; echo \$? > ../croc.status") < /dev/null > /dev/null 2>&1 &"
# A host that was started anew has no status, and what ran there was killed.
look="if flock -n croc.lock true; then echo croc: \$(cat croc.status || echo 137); else echo croc: running; fi"

# A question without an answer says nothing about the slice.
state() { gcloud compute tpus queued-resources describe "$JOB_NAME" "${place[@]}" --format='value(state.state)' || :; }
is_gone() { [[ $(state) =~ ^(SUSPENDING|SUSPENDED|FAILED|DELETING)$ ]]; }
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
# Prepares and starts all hosts on which nothing runs; a slice that has just come may not answer at once.
start_all() {
    local try
    for try in 1 2 3 4 5; do
        if copy "$archive" croc.tar && on_hosts "$start"; then return; fi
        if is_gone; then return; fi
        echo "$JOB_NAME could not be prepared ($try of 5)" >&2
        sleep "$POLL_SECONDS"
    done
    return 1
}
# Waits until all hosts have ended, and leaves the highest of their statuses; nothing if the slice is gone.
wait_for_end() {
    local answers
    status=
    while [[ -z $status ]] && ! is_gone; do
        sleep "$POLL_SECONDS"
        answers=$(on_hosts "$look") || continue
        [[ $answers == *'croc: running'* ]] || status=$(sed -n 's/^croc: //p' <<< "$answers" | sort -n | tail -n 1)
    done
}

archive=${TMPDIR:-/tmp}/$JOB_NAME.tar
if [[ ! $dry_run && $(state 2> /dev/null) ]]; then
    echo "error: there is a request $JOB_NAME already: choose another JOB_NAME, or delete it (gcloud compute tpus" \
        "queued-resources delete $JOB_NAME --force)" >&2
    exit 1
fi
# Whatever happens, nothing is left that costs money.
trap 'call rm -f "$archive"; give_back' EXIT
trap 'exit 130' INT TERM
call git archive --format=tar --output="$archive" HEAD
while :; do
    wait_for_slice
    while :; do
        start_all
        if [[ $dry_run ]]; then
            on_hosts "$look"
            exit
        fi
        wait_for_end
        case $status in
        '') break ;;
        # It asks for another start: by itself, or as SIGUSR1 or SIGTERM came before it could listen.
        75 | 138 | 143) ;;
        *) ((status > 128 && status != 130 && RESTARTS-- > 0)) || exit "$status" ;;
        esac
        echo "the run ended with status $status and starts again" >&2
    done
    echo "$JOB_NAME was taken away; it is asked for again" >&2
    give_back
done
