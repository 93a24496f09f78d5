# What was left behind: by an earlier keeper, by processes that were killed, by clients that stay away.

# What an earlier keeper left: read it, end what nobody waits for, go on with the queue.
recover() {
    number=0
    [ ! -f number ] || read -r number <number
    set +f
    for file in owners/*; do
        [ -f "$file" ] || continue
        while read -r _ n rest; do [ "$n" -le "$number" ] || number=$n; done <"$file"
    done
    known=$(for dir in runs/*; do
        [ -f "$dir/seq" ] || continue
        read -r seq <"$dir/seq"
        echo "$seq ${dir#runs/}"
    done | sort -n)
    rm -rf sessions/*/gone
    set -f
    set -- $known
    while [ $# -gt 0 ]; do
        order=$1 key=$2
        shift 2
        head_of "$key"
        if [ -e "runs/$key/said" ] && [ -e "runs/$key/freed" ] || [ -e "runs/$key/said" ] && [ ! -f "runs/$key/slot" ]; then
            continue
        elif [ -f "runs/$key/held" ]; then
            read -r slot <"runs/$key/held"
            slots="$slots $slot" used_cpus=$((used_cpus + cpus)) used_memory=$((used_memory + memory))
            holds="$holds $x:$owner:$cpus:$memory:$slot"
        elif [ ! -d "runs/$key/claim" ] && [ ! -f "runs/$key/slot" ]; then
            queue="$queue $key"
        else
            re_adopt
        fi
    done
    set +f
    for dir in spool/*; do
        # Half an order is no order; its client hands it over again.
        [ -d "$dir" ] && rm -rf "$dir"
    done
    set -f
}

re_adopt() {
    by=
    for _ in 1 2 3 4 5; do
        # It was launched in the moment in which the other keeper died.
        [ -f "runs/$key/claim/by" ] && break
        nap
    done
    [ ! -f "runs/$key/claim/by" ] || read -r by <"runs/$key/claim/by"
    if [ -f "runs/$key/freed" ] || [ -n "$by" ] && is_alive $by; then
        read -r slot <"runs/$key/slot"
        running="$running $key"
        if [ "$lease" = - ]; then
            slots="$slots $slot" used_cpus=$((used_cpus + cpus)) used_memory=$((used_memory + memory))
        fi
        [ ! -f "runs/$key/freed" ] || on_free "$key"
        return 0
    fi
    lose "$key"
}

# The process that waited for it is gone without a verdict.
lose() {
    head_of "$1"
    by=
    [ ! -f "runs/$1/claim/by" ] || read -r by rest <"runs/$1/claim/by"
    why="keeper: the process that waited for it was killed while it ran"
    if [ "$by" != "$boot" ]; then
        why="reboot: the node was restarted while it ran"
        rm -f "runs/$1/pid"
    fi
    mkdir "runs/$1/claim" 2>/dev/null
    while is_left "runs/$1" "$1"; do
        signal_all "runs/$1" "$1" KILL
        nap
    done
    slot=0
    [ ! -f "runs/$1/slot" ] || read -r slot <"runs/$1/slot"
    if [ ! -f "runs/$1/verdict" ]; then
        put "runs/$1/verdict" "$(size_of "runs/$1/out") $(size_of "runs/$1/err") 0 reason=lost${tab}why=$why${tab}slot=$slot"
    fi
    : >"runs/$1/freed"
    on_ended "$1"
}

# Every few seconds: is everybody still there, is there still something to do?
on_tick() {
    is_ours || exit 0
    for each in $running; do
        [ -e "runs/$each/freed" ] && { on_free "$each"; continue; }
        [ -f "runs/$each/claim/by" ] || continue
        read -r by <"runs/$each/claim/by"
        is_alive $by && continue
        lose "$each"
        on_free "$each"
    done
    set +f
    for dir in sessions/*; do
        [ -d "$dir" ] || continue
        start_of "${dir#sessions/}" && continue
        # Its other half waits at the bell.
        [ ! -p "$dir/bell" ] || echo 1<>"$dir/bell"
        rm -rf "$dir"
    done
    set -- sessions/*
    [ -d "$1" ] || shift
    set -f
    if [ $# -gt 0 ] || [ -n "$queue$running$holds" ]; then quiet=0; else quiet=$((quiet + 1)); fi
    [ "$quiet" -lt 60 ] || { put number "$number"; rm -rf keeper; exit 0; }
}

is_ours() {
    by=
    [ ! -f keeper/by ] || read -r by <keeper/by
    [ "$by" = "$mine" ]
}
