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
            take_again "$key"
            holds="$holds $x:$owner:$cpus:$memory:$slot"
        elif [ ! -e "runs/$key/claim" ] && [ ! -f "runs/$key/slot" ]; then
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

# take_again KEY: room that it has already, from an earlier keeper.
take_again() {
    slots="$slots $slot" used_cpus=$((used_cpus + cpus)) used_memory=$((used_memory + memory))
    [ -f "runs/$1/gpus" ] || return 0
    read -r given <"runs/$1/gpus"
    free_gpus=$((free_gpus - gpus))
    rest=
    for each in $gpus_free; do case ",$given," in *",$each,"*) ;; *) rest="$rest $each" ;; esac; done
    gpus_free=$rest
}

re_adopt() {
    read -r slot <"runs/$key/slot"
    running="$running $key"
    if [ "$lease" = - ]; then take_again "$key"; fi
    if [ ! -e "runs/$key/claim" ]; then
        # It was launched in the moment in which the other keeper died, or is not yet: of two one claims it.
        launch run "$state/runs/$key" "$slot"
    else
        look_after "$key"
    fi
}

# look_after KEY: one that runs may be over, or have lost the process that waited for it.
look_after() {
    if [ ! -e "runs/$1/freed" ]; then
        read -r by <"runs/$1/claim"
        is_alive $by && return 0
        # Its last deed may have been to say that all is over.
        [ -e "runs/$1/freed" ] || lose "$1"
    fi
    on_free "$1"
}

# The process that waited for it is gone without a verdict.
lose() {
    head_of "$1"
    by=
    read -r by rest <"runs/$1/claim"
    why="keeper: the process that waited for it was killed while it ran"
    if [ "$by" != "$boot" ]; then
        why="reboot: the node was restarted while it ran"
        rm -f "runs/$1/pid"
    fi
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
}

# Every few seconds: is everybody still there, is there still something to do?
on_tick() {
    is_ours || exit 0
    keep_room spare
    unclaimed=
    for each in $running; do
        if [ -e "runs/$each/claim" ]; then
            look_after "$each"
        elif [ -d "runs/$each" ]; then
            # Launched, and nobody came: the node had no room for a process. Should both come, one claims it.
            case " $late " in
            *" $each "*) read -r slot <"runs/$each/slot" && launch run "$state/runs/$each" "$slot" ;;
            *) unclaimed="$unclaimed $each" ;;
            esac
        fi
    done
    late=$unclaimed
    set +f
    for dir in sessions/*; do
        [ -d "$dir" ] || continue
        name=${dir#sessions/}
        is_alive "$boot" "${name%.*}" "${name#*.}" && continue
        # Its other half waits at the bell.
        [ ! -p "$dir/bell" ] || echo 1<>"$dir/bell"
        rm -rf "$dir"
    done
    set -f
    left=
    for sub in $subs; do [ ! -d "sessions/${sub%%:*}" ] || left="$left $sub"; done
    subs=$left
    expire_owners
    if has_sessions || [ -n "$queue$running$holds" ]; then quiet=0; else quiet=$((quiet + 1)); fi
    [ "$quiet" -lt 60 ] || leave
}

has_sessions() {
    set +f
    set -- sessions/*
    set -f
    [ -d "$1" ]
}

# A session that comes just now makes its folder before it looks whether we are ready: either we see it, or it sees that we go.
leave() {
    rm -f ready
    if has_sessions; then
        put ready "$mine"
        quiet=0
        return 0
    fi
    put number "$number"
    rm -f lock
    exit 0
}

# Hundredths of a second after which an absent owner's executions are ended and its events dropped: seven days, as with python3.
LEASE=60480000

# What belongs to clients that stay away is ended, then forgotten. A restart of the node begins the time anew.
expire_owners() {
    clock
    now=$cs
    set +f
    set -- seen/*
    set -f
    for file; do
        [ -f "$file" ] || continue
        name=${file#seen/} when=
        read -r since when <"$file"
        here=
        case "$subs " in *":$name "*) here=yes ;; esac
        if [ "$since" != "$boot" ]; then
            put "$file" "$boot $now"
        elif [ -n "$here" ]; then
            [ $((now - when)) -lt 6000 ] || put "$file" "$boot $now"
        elif [ $((now - when)) -gt $LEASE ]; then
            cancel_owner "$name" "its owner stayed away for $((LEASE / 100)) s"
            drop_owner "$name"
        fi
    done
}

# drop_owner OWNER: all that is kept for it, once nothing of it is left.
drop_owner() {
    for each in $running; do
        head_of "$each"
        [ "$owner" != "$1" ] || return 0
    done
    case "$holds" in *:"$1":*) return 0 ;; esac
    set +f
    for dir in runs/*; do
        [ -f "$dir/head" ] || continue
        head_of "${dir#runs/}"
        [ "$owner" != "$1" ] || rm -rf "$dir"
    done
    set -f
    rm -f "owners/$1" "seen/$1"
}

is_ours() {
    by=
    { read -r by <lock; } 2>/dev/null
    [ "$by" = "$mine" ]
}
