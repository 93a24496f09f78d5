# The keeper: one per node and user. Reads lines from the FIFO `ctl`, one word and its arguments each; owns the queue, the
# slots and the numbers of events. What an earlier one left and what time brings is recovery.sh's.

# say OWNER KIND ID ATTEMPT OUT ERR OUTCOME DETAIL: number an event, keep it, pass it on.
say() {
    number=$((number + 1))
    line="E $number $2 $3 $4 $5 $6 $7 $8"
    append "owners/$1" "$line"
    for sub in $subs; do
        [ "${sub#*:}" = "$1" ] && post "${sub%%:*}" "$line"
    done
    return 0
}

# append FILE LINE: at its end, whole. On a full disk a line may be cut: then without the cut one, once there is room.
append() {
    printf '%s\n' "$2" >>"$1" && return 0
    rm -rf spare
    until { [ ! -f "$1" ] || whole_lines "$1"; } >"$1.whole" && printf '%s\n' "$2" >>"$1.whole" && mv -f "$1.whole" "$1"; do
        nap
    done
}

whole_lines() {
    while IFS= read -r whole; do printf '%s\n' "$whole" || return 1; done <"$1"
    return 0
}

# post SESSION LINE
post() {
    if [ -d "sessions/$1" ]; then
        # One that cannot be told has to come again: it then hears all of it.
        if printf '%s\n' "$2" >>"sessions/$1/out"; then ring "$1"; else end_session "$1"; fi
    else
        left=
        for sub in $subs; do [ "${sub%%:*}" = "$1" ] || left="$left $sub"; done
        subs=$left
    fi
}

# Only where nobody rang: so the FIFO never fills, however slow a client is.
ring() {
    [ -e "sessions/$1/rung" ] && return 0
    : >"sessions/$1/rung"
    echo 1<>"sessions/$1/bell"
}

head_of() { read -r x attempt owner cpus memory gpus wall grace lease keep outcome <"runs/$1/head"; }

on_order() {
    read -r x attempt owner cpus memory gpus wall grace lease keep outcome <"spool/$1/head" || return 0
    key=$x.$attempt
    if [ -d "runs/$key" ]; then rm -rf "spool/$1"; return 0; fi
    order=$((order + 1))
    put "spool/$1/seq" "$order"
    mv "spool/$1" "runs/$key"
    take_in "$key"
}

# on_unwritten OWNER ID ATTEMPT: an order for which there was no room.
on_unwritten() {
    [ -d "runs/$2.$3" ] || say "$1" ended "$2" "$3" 0 0 0 "reason=node${tab}why=$state: an order cannot be written: the node's disk is full"
}

take_in() {
    head_of "$1"
    case $lease in
    - | hold) ;;
    tty)
        refuse "$1" "there is no python3 on this node, and without it no pseudo-terminal"
        return 0
        ;;
    *)
        for hold in $holds; do
            case $hold in "$lease":*) in_hold="${hold##*:}"; start "$1" "$in_hold"; return 0 ;; esac
        done
        refuse "$1" "the slot $lease is not held any more"
        return 0
        ;;
    esac
    case $gpus in
    *.*)
        gpus=0
        refuse "$1" "there is no python3 on this node, and without it no shares of GPUs"
        return 0
        ;;
    esac
    if [ "$cpus" -gt "$all_cpus" ] || [ "$gpus" -gt "$all_gpus" ] || [ "$memory" -gt "$all_memory" ]; then
        refuse "$1" "asks for $cpus cores, $memory bytes of memory, $gpus GPUs; this node has $all_cpus, $all_memory, $all_gpus"
        return 0
    fi
    queue="$queue $1"
}

refuse() {
    : >"runs/$1/said"
    claim "runs/$1/claim" -
    say "$owner" refused "$x" "$attempt" 0 0 0 "why=$2"
}

fits() { [ $((used_cpus + cpus)) -le "$all_cpus" ] && [ $((used_memory + memory)) -le "$all_memory" ] && [ "$gpus" -le "$free_gpus" ]; }

# First come, first served: one that does not fit holds up those behind it.
fill() {
    while :; do
        set -- $queue
        [ $# -gt 0 ] || return 0
        head_of "$1"
        fits || return 0
        key=$1
        shift
        queue=$*
        take_room
        if [ "$lease" = hold ]; then
            claim "runs/$key/claim" -
            put "runs/$key/held" "$slot"
            holds="$holds $x:$owner:$cpus:$memory:$slot"
            say "$owner" held "$x" "$attempt" 0 0 0 "slot=$slot"
        else
            start "$key" "$slot"
        fi
    done
}

take_room() {
    slot=0
    while :; do case " $slots " in *" $slot "*) slot=$((slot + 1)) ;; *) break ;; esac; done
    slots="$slots $slot"
    used_cpus=$((used_cpus + cpus)) used_memory=$((used_memory + memory)) free_gpus=$((free_gpus - gpus))
    if [ "$gpus" -gt 0 ]; then
        given= rest=
        for each in $gpus_free; do
            if [ "$gpus" -gt 0 ]; then given="$given,$each" gpus=$((gpus - 1)); else rest="$rest $each"; fi
        done
        gpus_free=$rest
        put "runs/$key/gpus" "${given#,}"
    fi
}

give_back() {
    rest=
    for each in $slots; do [ "$each" = "$1" ] || rest="$rest $each"; done
    slots=$rest
    used_cpus=$((used_cpus - cpus)) used_memory=$((used_memory - memory)) free_gpus=$((free_gpus + gpus))
    if [ -f "runs/$2/gpus" ]; then
        read -r given <"runs/$2/gpus"
        gpus_free="$gpus_free $(printf '%s' "$given" | tr ',' ' ')"
    fi
}

start() {
    keep_room spare
    put "runs/$1/slot" "$2"
    running="$running $1"
    launch run "$state/runs/$1" "$2"
}

# on_begun KEY SLOT: there is a process now, one that can be paused.
on_begun() {
    [ -f "runs/$1/head" ] || return 0
    head_of "$1"
    say "$owner" started "$x" "$attempt" 0 0 0 "slot=$2"
}

on_ended() {
    [ -f "runs/$1/verdict" ] && [ ! -e "runs/$1/said" ] || return 0
    head_of "$1"
    read -r out err note detail <"runs/$1/verdict"
    # Small output travels with the verdict, large output is fetched.
    if [ "$out" -gt 8192 ] || [ "$err" -gt 8192 ]; then : >"runs/$1/large"; fi
    say "$owner" ended "$x" "$attempt" "$out" "$err" "$note" "$detail"
    : >"runs/$1/said"
}

on_free() {
    left= known=
    for each in $running; do if [ "$each" = "$1" ]; then known=yes; else left="$left $each"; fi; done
    running=$left
    [ -n "$known" ] || return 0
    on_ended "$1"
    if [ -f "runs/$1/head" ]; then
        head_of "$1"
        case $lease in
        -)
            read -r slot <"runs/$1/slot"
            give_back "$slot" "$1"
            ;;
        *) end_holds ;;
        esac
        [ ! -e "runs/$1/acked" ] || forget_run "$1"
    fi
}

# The run of an acknowledged end: gone, unless its output is still to be fetched.
forget_run() {
    case " $running " in *" $1 "*) : >"runs/$1/acked"; return 0 ;; esac
    if [ -e "runs/$1/large" ] && [ ! -e "runs/$1/dropped" ]; then : >"runs/$1/acked"; else rm -rf "runs/$1"; fi
}

unqueue() {
    found= left=
    for each in $queue; do if [ "$each" = "$1" ]; then found=yes; else left="$left $each"; fi; done
    queue=$left
    [ -n "$found" ]
}

on_recall() {
    if unqueue "$1.$2"; then
        head_of "$1.$2"
        rm -rf "runs/$1.$2"
        say "$owner" recalled "$1" "$2" 0 0 0 -
    fi
}

# on_cancel OWNER ID ATTEMPT GRACE [WHY]
on_cancel() {
    key=$2.$3
    if unqueue "$key" || [ ! -d "runs/$key" ]; then
        why="before it came"
        [ ! -d "runs/$key" ] || why=${5:-before it started}
        # Whatever still comes for it must not start.
        mkdir -p "runs/$key"
        claim "runs/$key/claim" -
        [ -f "runs/$key/head" ] || put "runs/$key/head" "$2 $3 $1 1 0 0 - 1000 - - -"
        : >"runs/$key/said"
        say "$1" ended "$2" "$3" 0 0 0 "reason=cancelled${tab}why=$why"
        return 0
    fi
    [ ! -e "runs/$key/freed" ] && [ ! -e "runs/$key/said" ] || return 0
    head_of "$key"
    [ -z "${4-}" ] || grace=$4
    launch end "$state/runs/$key" "$key" cancelled "$grace" "${5:-cancelled}"
}

on_pause() {
    key=$1.$2
    case " $running " in *" $key "*) ;; *) return 0 ;; esac
    dir=runs/$key
    if [ -e "$dir/paused" ] || [ -e "$dir/verdict" ] || [ -e "$dir/ending" ]; then return 0; fi
    clock
    put "$dir/paused" "$cs"
    before=
    while :; do
        # Again until no new one appears: a process may fork between our look and our signal.
        signal_all "$dir" "$key" STOP
        seen=$(members "$key")
        [ "$seen" != "$before" ] || break
        before=$seen
    done
    head_of "$key"
    say "$owner" paused "$1" "$2" 0 0 0 -
}

on_resume() {
    key=$1.$2
    dir=runs/$key
    [ -f "$dir/paused" ] || return 0
    read -r since <"$dir/paused"
    idle=0
    [ ! -f "$dir/idle" ] || read -r idle <"$dir/idle"
    clock
    put "$dir/idle" $((idle + cs - since))
    rm -f "$dir/paused"
    signal_all "$dir" "$key" CONT
    head_of "$key"
    say "$owner" resumed "$1" "$2" 0 0 0 -
}

# on_unhold OWNER ID
on_unhold() {
    if unqueue "$2.1"; then
        rm -rf "runs/$2.1"
        say "$1" unheld "$2" 1 0 0 0 -
        return 0
    fi
    case " $holds" in *" $2:"*) ;; *) say "$1" unheld "$2" 1 0 0 0 -; return 0 ;; esac
    ending_holds="$ending_holds $2"
    for each in $running; do
        head_of "$each"
        [ "$lease" != "$2" ] || launch end "$state/runs/$each" "$each" cancelled "$grace" "its slot was given back"
    done
    end_holds
}

# Give back the room of holds that are over and in which nothing runs any more.
end_holds() {
    for ending in $ending_holds; do
        for each in $running; do
            head_of "$each"
            [ "$lease" != "$ending" ] || continue 2
        done
        left=
        for each in $ending_holds; do [ "$each" = "$ending" ] || left="$left $each"; done
        ending_holds=$left
        head_of "$ending.1"
        read -r slot <"runs/$ending.1/held"
        give_back "$slot" "$ending.1"
        left=
        for each in $holds; do case $each in "$ending":*) ;; *) left="$left $each" ;; esac; done
        holds=$left
        rm -rf "runs/$ending.1"
        say "$owner" unheld "$ending" 1 0 0 0 -
    done
}

# on_ack OWNER NUMBER
on_ack() {
    [ -f "owners/$1" ] || return 0
    put number "$number"
    while read -r _ n kind x attempt rest; do
        if [ "$n" -gt "$2" ]; then
            echo "E $n $kind $x $attempt $rest"
        else
            case $kind in ended | refused) [ ! -d "runs/$x.$attempt" ] || forget_run "$x.$attempt" >&2 ;; esac
        fi
    done <"owners/$1" >left
    mv -f left "owners/$1"
}

# on_attach SESSION OWNER ACKNOWLEDGED CPUS MEMORY
on_attach() {
    # Who says nothing has what there is, unless others cut it for what they run.
    [ -n "$queue$running$holds" ] || all_cpus=$(count_cpus) all_memory=$(count_memory)
    [ "$4" = - ] || all_cpus=$4
    [ "$5" = - ] || all_memory=$5
    clock
    put "seen/$2" "$boot $cs"
    # An owner speaks through one session. What an older one still had to say may be out of date by now.
    for sub in $subs; do [ "${sub#*:}" != "$2" ] || end_session "${sub%%:*}"; done
    on_ack "$2" "$3"
    if [ -f "owners/$2" ]; then cat "owners/$2" >>"sessions/$1/out"; fi
    subs="$subs $1:$2"
    holding=
    for each in $queue; do
        head_of "$each"
        state_of=queued
        [ "$lease" != hold ] || state_of=hold
        [ "$owner" != "$2" ] || holding="$holding $x:$attempt:$state_of"
    done
    for each in $running; do
        head_of "$each"
        state_of=running
        [ ! -e "runs/$each/paused" ] || state_of=paused
        [ -e "runs/$each/said" ] || [ "$owner" != "$2" ] || holding="$holding $x:$attempt:$state_of"
    done
    for hold in $holds; do
        case $hold in *:"$2":*) holding="$holding ${hold%%:*}:1:held" ;; esac
    done
    post "$1" "A $number $all_cpus $used_cpus $all_memory $used_memory ${gpu_names:--} |$holding"
}

end_session() {
    left=
    for each in $subs; do [ "${each%%:*}" = "$1" ] || left="$left $each"; done
    subs=$left
    is_alive "$boot" "${1%.*}" "${1#*.}" && kill "${1%.*}"
}

# on_forget OWNER: it will not come back.
on_forget() {
    cancel_owner "$1" forgotten
    put "seen/$1" "$boot -$LEASE"
}

# cancel_owner OWNER WHY
cancel_owner() {
    for each in $queue $running; do
        head_of "$each"
        [ "$owner" = "$1" ] && [ ! -e "runs/$each/ending" ] || continue
        on_cancel "$1" "$x" "$attempt" "" "$2"
    done
    for hold in $holds; do
        case $hold in *:"$1":*) case " $ending_holds " in *" ${hold%%:*} "*) ;; *) on_unhold "$1" "${hold%%:*}" ;; esac ;; esac
    done
}

# on_status SESSION TAG
on_status() {
    clock
    now=$cs
    told=
    for each in $running; do
        head_of "$each"
        since=$now pid=0
        [ ! -f "runs/$each/clock" ] || read -r since <"runs/$each/clock"
        [ ! -f "runs/$each/pid" ] || read -r pid rest <"runs/$each/pid"
        read -r slot <"runs/$each/slot"
        paused=0
        [ ! -e "runs/$each/paused" ] || paused=1
        told="$told $x:$attempt:$owner:$slot:$pid:$((now - since)):$paused"
    done
    set -- "$1" "$2" $queue
    post "$1" "S $2 $$ $(($# - 2)) $all_cpus $used_cpus $all_memory $used_memory ${gpu_names:--} |$told"
}

count_cpus() { nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || grep -c '^processor' /proc/cpuinfo; }

count_memory() {
    while read -r name value rest; do
        case $name in MemTotal:) echo $((value * 1024)); return ;; esac
    done </proc/meminfo
}

do_keeper() {
    state=$1
    cd "$state" || exit 1
    boot_id
    take_lock lock || exit 0
    # A name for what is in this folder: a new one tells a client that what it left here is gone.
    if [ ! -f id ]; then
        made=
        { read -r made </proc/sys/kernel/random/uuid; } 2>/dev/null || made=$$.$(date +%s)
        put id "$made"
    fi
    exec 3<>ctl
    queue= running= holds= ending_holds= slots= subs= late= order=0 quiet=0
    all_cpus=$(count_cpus) all_memory=$(count_memory) used_cpus=0 used_memory=0
    gpus_free=$(nvidia-smi --query-gpu=uuid --format=csv,noheader 2>/dev/null)
    set -- $gpus_free
    all_gpus=$# free_gpus=$# gpu_names=$(echo $gpus_free | tr ' ' ',')
    recover
    (
        exec 3<&-
        keeper=$$
        while sleep 5 && [ -d "/proc/$keeper" ]; do tell_keeper tick; done
    ) &
    put ready "$mine"
    while :; do
        fill
        IFS= read -r line <&3 || exit 1
        set -- $line
        verb=$1
        shift
        case $verb in
        attach | order | unwritten | recall | cancel | pause | resume | ack | unhold | forget | status | begun | ended | free | tick) "on_$verb" "$@" ;;
        drop)
            : >"runs/$1.$2/dropped" 2>/dev/null
            [ ! -e "runs/$1.$2/acked" ] || forget_run "$1.$2"
            ;;
        signal) signal_all "runs/$1.$2" "$1.$2" "$3" ;;
        retire)
            answer=no
            [ -n "$queue$running$holds" ] || answer=yes
            post "$1" "T $2 $answer"
            ;;
        esac
    done 2>>keeper.err
}
