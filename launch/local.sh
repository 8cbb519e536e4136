#!/usr/bin/env bash
# Several processes of one run on this machine, which share its devices as their environment says. In a checkout with
# its .venv:
#
#     launch/local.sh 2 train --config=configs/quickstart.py --workdir=runs/quickstart
#
# SIGTERM, SIGINT and SIGUSR1 go to all of them. The exit status is the highest of theirs.
set -uo pipefail
python=${PYTHON:-.venv/bin/python}
count=$1
shift
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
processes=()
for ((i = 0; i < count; i++)); do
    "$python" -m tljax "$@" --coordinator="127.0.0.1:$port" --num-processes="$count" --process-id="$i" &
    processes+=($!)
done
for signal in TERM INT USR1; do
    # shellcheck disable=SC2064 # the signal's name is that of now
    trap "kill -$signal ${processes[*]} 2>/dev/null" "$signal"
done
highest=0
for process in "${processes[@]}"; do
    while true; do
        wait "$process" # until it ends, or a signal comes
        status=$?
        kill -0 "$process" 2>/dev/null || break
    done
    ((status > highest)) && highest=$status
done
exit "$highest"
