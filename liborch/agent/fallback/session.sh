# One client on one channel: reads its lines, passes them to the keeper, prints what the client should know. And the
# output of one execution, followed on a channel of its own.

make_state() {
    state=${ORCHESTRA_AGENT_STATE:+$ORCHESTRA_AGENT_STATE-sh}
    name=$(hostname 2>/dev/null || uname -n)
    if [ -z "$state" ]; then
        state=${XDG_STATE_HOME:-$HOME/.local/state}/orchestra/nodes/$(printf '%s' "$name" | tr -c 'A-Za-z0-9._-' '_')-sh
    fi
    if ! said=$(mkdir -p "$state/owners" "$state/seen" "$state/runs" "$state/sessions" "$state/spool" 2>&1 && chmod 700 "$state" 2>&1); then
        echo "failed $said"
        exit 1
    fi
    cd "$state" || exit 1
    state=$(pwd)
    [ -p ctl ] || mkfifo ctl 2>/dev/null || [ -p ctl ] || { echo "failed mkfifo $state/ctl"; exit 1; }
}

# What executions inherit from this login.
write_login() {
    printf '%s\nunset SSH_AUTH_SOCK SSH_CONNECTION SSH_CLIENT SSH_TTY SHLVL OLDPWD\n' "$orchestra_environment" >"environment.$$" &&
        mv -f "environment.$$" environment && put mask "$orchestra_umask"
} 2>/dev/null

# Start a keeper where there is none, and wait until it listens; sets `keeper` to who it is. Busy nodes take their time.
reach_keeper() {
    tries=0
    while [ $tries -lt 250 ]; do
        keeper= listens=
        { read -r keeper <lock; } 2>/dev/null
        if [ -n "$keeper" ] && is_alive $keeper; then
            { read -r listens <ready; } 2>/dev/null
            [ "$listens" != "$keeper" ] || return 0
        elif [ $((tries % 10)) = 0 ]; then
            launch keeper "$state"
        fi
        tries=$((tries + 1))
        nap
    done
    echo "failed the keeper does not start; see $state/keeper.err"
    exit 1
}

# Print what gathers in `out`, each event with its output behind it.
emit() {
    exec 5<out
    part=
    while :; do
        read -r _ <&4 || exit 0
        start_of $$ || exit 0
        rm -f rung
        while IFS= read -r line <&5 || { part=$part$line; false; }; do
            line=$part$line part=
            case $line in
            'E '*)
                set -- $line
                dir=$state/runs/$4.$5
                if [ "$3" = ended ] && { [ "$6" -gt 0 ] || [ "$7" -gt 0 ] || [ "$8" -gt 0 ]; }; then
                    if [ -e "$dir/large" ] || [ ! -e "$dir/out" ]; then
                        set -- "$1" "$2" "$3" "$4" "$5" "$6" "$7" "$8" 0 0
                    else
                        set -- "$1" "$2" "$3" "$4" "$5" "$6" "$7" "$8" "$6" "$7"
                    fi
                    note=$8
                    [ -f "$dir/outcome" ] || note=0
                    printf '%s\n' "O $9 ${10} $note $line"
                    piece "$dir/out" "$9"
                    piece "$dir/err" "${10}"
                    piece "$dir/outcome" "$note"
                else
                    printf '%s\n' "$line"
                fi
                ;;
            'X '*)
                set -- $line
                printf '%s\n' "$line"
                cat "reply.$2"
                rm -f "reply.$2"
                ;;
            *) printf '%s\n' "$line" ;;
            esac || exit 0
        done
    done
}

# piece FILE SIZE: exactly so many bytes, also of a file that grew since.
piece() { [ "$2" -eq 0 ] || dd if="$1" bs="$2" count=1 2>/dev/null; }

do_session() {
    look_around
    unset SSH_AUTH_SOCK SSH_CONNECTION SSH_CLIENT SSH_TTY
    make_state
    boot_id
    start_of $$
    self=$$.$started
    # First this, then the look for a keeper: see `leave`.
    mkdir -p "sessions/$self"
    trap 'rm -rf "$state/sessions/$self"' EXIT
    if ! write_login && ! { rm -rf spare; write_login; }; then
        rm -f "environment.$$" "mask.$$"
        echo "failed $state: cannot be written: the node's disk is full or read-only"
        exit 1
    fi
    reach_keeper
    cd "sessions/$self" || exit 1
    mkfifo bell
    : >out
    exec 4<>bell
    read -r id <"$state/id"
    set -- $keeper
    means=
    for each in stat readlink tar taskset sha256sum; do command -v $each >/dev/null 2>&1 && means="$means,$each"; done
    user=${USER-}
    [ -n "$user" ] || user=$(id -un 2>/dev/null)
    printf 'hello\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$id" "$boot" "$name" "$(date +%s)" $$ "$2" "$detach" "$means" "$user" "$state"
    (emit) &
    emitter=$!
    (watch_keeper) </dev/null >/dev/null 2>&1 4<&- &
    watcher=$!
    trap 'kill $emitter $watcher 2>/dev/null; rm -rf "$state/sessions/$self"; exit 0' EXIT HUP TERM INT PIPE
    count=0
    while IFS= read -r line; do
        set -- $line
        [ $# -gt 0 ] || continue
        case $1 in
        order)
            # Its script follows, up to the marker.
            count=$((count + 1))
            dir=$state/spool/$self.$count
            marker=$2
            shift 2
            written=yes text=
            mkdir "$dir" && put "$dir/head" "$*" || written=
            if ! { while IFS= read -r text && [ "$text" != "$marker" ]; do printf '%s\n' "$text" || written=; done >"$dir/script"; }; then
                written=
                while [ "$text" != "$marker" ] && IFS= read -r text; do :; done
            fi
            [ "${text-}" = "$marker" ] || break
            if [ -n "$written" ]; then
                tell "order $self.$count"
            else
                rm -rf "$dir"
                tell "unwritten $3 $1 $2"
            fi
            ;;
        values)
            # The login's variables, by name: NUL-ended values.
            tag=$2
            shift 2
            for each; do eval "printf '%s\\0' \"\${$each-}\""; done >"reply.$tag"
            printf 'X %s %s\n' "$tag" "$(size_of "reply.$tag")" >>out
            (cd "$state" && ring "$self")
            ;;
        attach | status | retire)
            verb=$1
            shift
            tell "$verb $self $*"
            ;;
        bye) break ;;
        *) tell "$line" ;;
        esac
    done
}

# A keeper that takes over finds everything in its files, but who listens, and what was on its way to the other: so the session
# ends with its keeper, and the client comes again and hands over what did not arrive.
tell() {
    is_alive $keeper || exit 0
    tell_keeper "$*"
}

watch_keeper() {
    while sleep 5; do
        start_of $$ || exit 0
        is_alive $keeper || { kill $$; exit 0; }
    done
}

# ------------------------------------------------------------------ follow

# follow KEY OUT ERR: print `out AT SIZE` and bytes as they come; `end OUT ERR` once there is a verdict and all is printed.
do_follow() {
    make_state
    dir=$state/runs/$1 out=$2 err=$3 waited=0
    piece=$state/piece.$$
    trap 'rm -f "$piece"' EXIT HUP TERM INT PIPE
    while :; do
        final=
        if [ -f "$dir/verdict" ]; then
            read -r end_out end_err _ <"$dir/verdict" && final=yes
        fi
        moved=
        pieces out "$out" && out=$at moved=yes
        pieces err "$err" && err=$at moved=yes
        [ -z "$moved" ] || continue
        if [ -n "$final" ]; then
            echo "end $out $err"
            exit 0
        fi
        # Something for the client now and then: otherwise nobody notices that it is gone.
        if [ -d "$dir" ]; then waited=0; else waited=$((waited + 1)); fi
        [ "$waited" -lt 20 ] || { echo gone; exit 0; }
        nap
        printf '\n' || exit 0
    done
}

# pieces NAME OFFSET: print what is behind the offset, at most a megabyte; sets `at`. Fails when there is nothing.
pieces() {
    at=$2
    [ -f "$dir/$1" ] || return 1
    length=$(size_of "$dir/$1")
    if [ -n "$final" ]; then eval "length=\$end_$1"; fi
    [ "$length" -gt "$at" ] || return 1
    # Whole blocks, as dd counts them; what the client has already it passes over.
    from=$((at / 65536))
    if ! dd if="$dir/$1" of="$piece" bs=65536 skip=$from count=16 2>/dev/null; then
        # The disk that holds the output is full: another may have room for a piece of it.
        rm -f "$piece"
        piece=$(mktemp) && dd if="$dir/$1" of="$piece" bs=65536 skip=$from count=16 2>/dev/null || return 1
    fi
    got=$(wc -c <"$piece")
    [ $((from * 65536 + got)) -gt "$at" ] || return 1
    # Survivors of the execution may have written more since the verdict.
    if [ -n "$final" ] && [ $((from * 65536 + got)) -gt "$length" ]; then got=$((length - from * 65536)); fi
    printf '%s %s %s\n' "$1" $((from * 65536)) $((got))
    piece "$piece" $((got)) || exit 0
    at=$((from * 65536 + got))
}
