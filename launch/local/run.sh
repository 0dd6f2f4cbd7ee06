#!/usr/bin/env bash
# Trains on all devices of this host, in one process, and starts again what was stopped.
#
#     launch/local/run.sh [--dry-run] --config=configs/croc_vits16_coco.py --workdir=runs/coco
#
# All that follows goes to launch/pretrain.py. --dry-run prints the command, and does nothing. A run that exits with 75
# (SIGTERM or SIGUSR1 reached it) goes on at once, and so does one that was killed, a few times. A signal to this script,
# Ctrl-C included, lets the run save and ends both.
set -euo pipefail

# All of these can be set in the environment.
RESTARTS=${RESTARTS:-3} # of a run that was killed, as when memory runs out
PYTHON=${PYTHON:-python}
PROGRAM=${PROGRAM:-launch/pretrain.py}

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

run=("$PYTHON" "$PROGRAM" "$@")
if [[ $dry_run ]]; then
    printf '%q ' "${run[@]}" | sed 's/ $/\n/'
    exit
fi

stopping='' interrupted='' child=''
# The run gets SIGTERM whatever the signal: Ctrl-C at a terminal reaches it as well, and a second SIGINT would break off
# what it saves.
trap 'stopping=yes interrupted=yes; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || :' TERM INT USR1
while :; do
    "${run[@]}" &
    child=$!
    # A signal ends the wait, not the run, which is saving.
    while :; do
        status=0 interrupted=''
        wait "$child" || status=$?
        [[ $interrupted ]] || break
    done
    [[ -z $stopping ]] || exit "$status"
    # It asks for another start: by itself, or as SIGUSR1 or SIGTERM came before it could listen.
    if ((status != 75 && status != 138 && status != 143)); then
        # Killed; 130 is somebody's wish.
        ((status > 128 && status != 130 && RESTARTS-- > 0)) || exit "$status"
    fi
    echo "$PROGRAM ended with status $status and starts again" >&2
done
