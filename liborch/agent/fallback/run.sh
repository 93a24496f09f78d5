# One execution, by a process of its own that goes on when keeper and session are gone: `run` claims it, starts `main`,
# waits and writes the verdict; `end` ends it.

do_run() {
    dir=$1 slot=$2 key=${1##*/}
    cd "$dir" || exit 1
    boot_id
    start_of $$
    claim claim "$boot $$ $started" || exit 0
    read -r x attempt owner cpus memory gpus wall grace lease keep outcome <head
    began=$(date +%s)
    clock
    put clock "$cs"
    : >>out
    : >>err
    exec 2>told
    timer=
    if [ "$wall" != - ]; then watch_time & timer=$!; fi
    leads=no
    if [ "$detach" != nohup ]; then leads=yes; fi
    if [ -e ending ]; then
        code=143
    elif [ $leads = yes ]; then
        ORCHESTRA_EXECUTION=$key setsid sh "$me" main "$dir" "$slot" yes
        code=$?
    else
        ORCHESTRA_EXECUTION=$key sh "$me" main "$dir" "$slot" no
        code=$?
    fi
    clock
    read -r start <clock
    took=$((cs - start))
    # The shell says it aloud, on its own stderr, when a signal ended a command; the code alone could be the command's own.
    number=
    if [ "$code" -gt 128 ] && [ -s told ]; then number=$((code - 128)); fi
    reason=exit why=
    [ -z "$number" ] || reason=signal
    if [ -e ending ]; then
        clock
        until=$((cs + grace + 6000))
        while is_left . "$key"; do
            clock
            if [ "$cs" -gt "$until" ]; then
                why="; unkillable for 60 s: processes $(members "$key" | tr '\n' ' ')"
                break
            fi
            nap
        done
        read -r reason first <ending
        why="$first$why"
    fi
    verdict="reason=$reason${tab}start=$began${tab}dur=$took${tab}slot=$slot"
    if [ -n "$number" ]; then verdict="$verdict${tab}signal=$number"; else verdict="$verdict${tab}code=$code"; fi
    [ -z "$why" ] || verdict="$verdict${tab}why=$why"
    [ -f pid ] && [ "$leads" = no ] && verdict="$verdict${tab}means=mark"
    note=0
    [ "$outcome" = - ] || note=$(size_of outcome)
    until put verdict "$(size_of out) $(size_of err) $note $verdict" 2>/dev/null; do
        case $verdict in
        *"disk is full"*) nap ;;
        *why=*) verdict="$verdict; the node's disk is full: $dir" ;;
        *) verdict="$verdict${tab}why=the node's disk is full: $dir" ;;
        esac
        rm -rf ../../spare
    done
    tell_keeper ended "$key"
    [ -z "$timer" ] || kill "$timer" 2>/dev/null
    if [ "$keep" = - ] && is_left . "$key"; then
        signal_all . "$key" TERM
        for _ in 1 2 3 4 5 6 7 8 9 10; do
            is_left . "$key" || break
            nap
        done
        while is_left . "$key"; do
            signal_all . "$key" KILL
            nap
        done
    fi
    : >freed
    tell_keeper free "$key"
}

# Ends the execution when its time is over; a pause does not count.
watch_time() {
    nested=
    trap 'kill $nested 2>/dev/null; exit 0' TERM
    left=$wall
    while :; do
        sleep $((left / 100)).$(printf '%02d' $((left % 100))) 2>/dev/null &
        nested=$!
        wait $nested || { sleep $(((left + 99) / 100)) & nested=$!; wait $nested; }
        clock
        idle=0
        [ ! -f idle ] || read -r idle <idle
        if [ -f paused ]; then left=100; continue; fi
        read -r start <clock
        left=$((start + wall + idle - cs))
        [ "$left" -gt 0 ] || break
    done
    launch end "$dir" "$key" walltime "$grace" "over its walltime of $((wall / 100)) s"
}

# main DIR SLOT LEADS: with the login's environment, then the execution's own, become its command.
do_main() {
    orchestra_dir=$1 orchestra_slot=$2
    exec </dev/null >>"$1/out" 2>>"$1/err"
    start_of $$
    put "$1/pid" "$$ $started $3"
    [ ! -e "$1/ending" ] || exit 143
    state=${1%/runs/*}
    tell_keeper begun "${1##*/}" "$2"
    orchestra_key=${1##*/}
    orchestra_mask=077
    read -r orchestra_mask <"$1/../../mask"
    orchestra_place() {
        ORCHESTRA_EXECUTION=$orchestra_key
        RUNAWAY_HANDLE_ID=$orchestra_slot
        export ORCHESTRA_EXECUTION RUNAWAY_HANDLE_ID
        orchestra_gpus=
        [ ! -f "$orchestra_dir/gpus" ] || read -r orchestra_gpus <"$orchestra_dir/gpus"
        if [ -n "$orchestra_gpus" ]; then
            CUDA_VISIBLE_DEVICES=$orchestra_gpus ROCR_VISIBLE_DEVICES=$orchestra_gpus HIP_VISIBLE_DEVICES=$orchestra_gpus
            export CUDA_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES HIP_VISIBLE_DEVICES
        fi
    }
    orchestra_outcome() { ORCHESTRA_OUTCOME=$orchestra_dir/outcome; export ORCHESTRA_OUTCOME; }
    orchestra_enter() {
        umask "$orchestra_mask"
        set +f
        [ -d "$1" ] || { printf '%s: No such file or directory\n' "$1" >&2; exit 127; }
        cd "$1" || exit 126
    }
    . "$orchestra_dir/../../environment"
    . "$orchestra_dir/script"
    exit 126
}

# end DIR KEY REASON GRACE WHY...: the first reason stays.
do_end() {
    boot_id
    dir=$1 key=$2 reason=$3 grace=$4
    shift 4
    claim "$dir/ending" "$reason $*"
    signal_all "$dir" "$key" TERM
    signal_all "$dir" "$key" CONT
    rm -f "$dir/paused"
    clock
    until=$((cs + grace))
    while [ -d "$dir" ] && [ ! -e "$dir/freed" ]; do
        clock
        [ "$cs" -lt "$until" ] || signal_all "$dir" "$key" KILL
        # Who waited for it may have been killed; then nobody will say that it is over.
        by=
        [ ! -f "$dir/claim" ] || read -r by <"$dir/claim"
        [ -z "$by" ] || is_alive $by || is_left "$dir" "$key" || break
        nap
    done
}
