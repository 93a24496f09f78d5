#!/bin/sh
# The tour of README.md, for real: runs the examples on this machine through `runaway exec local` and shows what came
# back. Everything happens in a temporary folder that stands in for the home folder, so nothing is left behind.
# Usage: sh examples/demo.sh FOLDER_OF_THE_COMMANDS
set -eu

commands=$(cd "$1" && pwd)
examples=$(cd "$(dirname "$0")" && pwd)
stage=$(mktemp -d)
trap 'runaway clean local --all >/dev/null 2>&1 || true; cd / && rm -rf "$stage"' EXIT
trap 'exit 130' INT TERM

# The person's own journal, profiles and caches stay out of it.
export HOME="$stage/home"
unset XDG_STATE_HOME XDG_CACHE_HOME XDG_CONFIG_HOME
mkdir "$HOME"
cp -R "$examples/pi" "$examples/training" "$stage/"
PATH="$commands:$PATH"

# Prints a command as a person would type it, then runs exactly that.
show() {
    printf '\n$ %s\n' "$*"
    eval "$*"
}

cd "$stage"
show cd pi
show runaway exec local pi.py -- --samples 200000
show cat result.json
show head -n 3 convergence.csv

show cd ../training
show "runaway exec local train.py --time 1m --output-folder 'runs/\$RUNAWAY_ECODE' -- --epochs 30 --lr 0.05"
show cat runs/0/metrics.json

show runaway exec local uname -- -sm
show runaway ps

printf '\nThat was the tour, on this machine. A name from your ssh configuration in place of `local` does the same there.\n'
