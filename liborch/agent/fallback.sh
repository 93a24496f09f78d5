#!/bin/sh
# The agent for nodes without python3: the same promises in POSIX sh, slower and with fewer means.
#
# It leaves to others: what is asked of it and how its words become events (liborch/drive/shell_link.py), files
# that travel (liborch/drive/shell_transfer.py). Measured against dash and busybox ash; needs /proc and mkfifo.
#
#   session   one per channel: reads lines from the client, passes them to the keeper, prints what the client should know
#   keeper    one per node and user: owns the queue, the slots and the numbers of events. Reads lines from the FIFO `ctl`
#   run       one per execution: claims it, starts `main`, waits, writes the verdict. Goes on when keeper and session are gone
#   main      becomes the execution's command
#   end       TERM now, KILL after the grace, until nothing is left
#   follow    prints output as it grows, in pieces with their length
#   do        reads a script from stdin up to a marker and runs it: transfers
#
# State, mode 0700, by default ~/.local/state/orchestra/nodes/NAME-sh:
#   id, number (of the last event), environment, ctl, keeper/ (a lock: boot id, pid, start time)
#   owners/OWNER     events not yet acknowledged, one a line
#   runs/ID.ATTEMPT/ head (what the keeper needs), script (what is run), seq, claim/, out, err, verdict, ...
#   sessions/PID/    out (lines on their way to one client), bell (FIFO: there are new ones)
#
# Files are written under another name and renamed; folders are claimed by mkdir. Nothing here parses what a client or an
# execution wrote, except words it split at blanks itself.

case ${1-} in
session) orchestra_environment=$(export -p) orchestra_umask=$(umask) ;;
do) orchestra_umask=$(umask) ;;
esac
me=$0
umask 077
set -f
tab=$(printf '\t')

boot_id() { boot=; { read -r boot </proc/sys/kernel/random/boot_id; } 2>/dev/null || :; }

# start_of PID: sets `started` to the process's start time in ticks since boot; fails when it is gone or a zombie.
start_of() {
    started=
    { IFS= read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
    set -- ${stat##*) }
    case $1 in Z | X) return 1 ;; esac
    shift 19
    started=$1
}

# is_alive BOOT PID START: whether that very process still runs.
is_alive() { [ "$1" = "$boot" ] && start_of "$2" && [ "$started" = "$3" ]; }

# clock: sets `cs` to hundredths of a second since boot: the one clock that nobody sets.
clock() {
    read -r cs rest </proc/uptime
    cs=${cs%.*}${cs#*.}
    while :; do case $cs in 0?*) cs=${cs#0} ;; *) break ;; esac; done
}

nap() { sleep 0.1 2>/dev/null || sleep 1; }

size_of() { if [ -f "$1" ]; then echo $(($(wc -c <"$1"))); else echo 0; fi; }

put() { printf '%s\n' "$2" >"$1.new" && mv -f "$1.new" "$1"; }

# take_lock FOLDER: make it ours, or return 1 when it is a living process's.
take_lock() {
    start_of $$
    mine="$boot $$ $started"
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        if mkdir "$1" 2>/dev/null; then
            put "$1/by" "$mine"
            return 0
        fi
        by=
        { read -r by <"$1/by"; } 2>/dev/null
        if [ -z "$by" ]; then nap; continue; fi
        is_alive $by && return 1
        # Of several who find it stale one moves it away.
        if mv "$1" "$1.stale.$$" 2>/dev/null; then
            was=
            read -r was <"$1.stale.$$/by"
            if [ "$was" != "$by" ]; then mv "$1.stale.$$" "$1" 2>/dev/null; continue; fi
            rm -rf "$1.stale.$$"
        fi
    done
    mv "$1" "$1.stale.$$" 2>/dev/null && rm -rf "$1.stale.$$"
    mkdir "$1" 2>/dev/null && put "$1/by" "$mine"
}

# alone COMMAND ...: run it while no other process of this node does; what prepares a folder and what tidies up must not meet.
alone() {
    boot_id
    lock=${me%/*}/alone-$boot
    until take_lock "$lock"; do nap; done
    "$@"
    set -- $?
    rm -rf "$lock"
    return "$1"
}

tell_keeper() { printf '%s\n' "$*" 1<>"$state/ctl"; }

# launch ARGUMENTS: start a verb of this script that outlives us.
launch() {
    case $detach in
    fork) setsid -f sh "$me" "$@" </dev/null >/dev/null 2>&1 3<&- ;;
    # Started in the background a process ignores INT and QUIT for good: there is no way around it in sh.
    session) setsid sh "$me" "$@" </dev/null >/dev/null 2>&1 3<&- & ;;
    *) nohup sh "$me" "$@" </dev/null >/dev/null 2>&1 3<&- & ;;
    esac
}

look_around() {
    if setsid -f true 2>/dev/null; then detach=fork
    elif setsid true 2>/dev/null; then detach=session
    else detach=nohup; fi
}

# ------------------------------------------------------------------ processes of an execution

# members KEY: prints the pids that carry the execution's mark.
members() {
    set +f
    # busybox's grep sees nothing behind a NUL byte.
    if [ "$(printf 'a\0mark' | grep -cF mark)" = 1 ]; then
        grep -lF "ORCHESTRA_EXECUTION=$1" /proc/[0-9]*/environ 2>/dev/null
    else
        for file in /proc/[0-9]*/environ; do
            { tr '\0' '\n' <"$file" | grep -qxF "ORCHESTRA_EXECUTION=$1"; } 2>/dev/null && echo "$file"
        done
    fi | while IFS=/ read -r _ _ pid _; do
        start_of "$pid" && echo "$pid"
    done
    set -f
}

# kill_group NAME GROUP: dash wants the dashes, busybox does not take them.
kill_group() { { kill -s "$1" -- "-$2" || kill -s "$1" "-$2"; } 2>/dev/null; }

# group DIR: sets `group` to the process group of an execution, "" when there is none that is surely ours.
group() {
    group=
    [ -f "$1/pid" ] || return 0
    read -r pid when leads <"$1/pid" || return 0
    [ "$leads" = yes ] || return 0
    # The number of a group is not given away while the group has members.
    if start_of "$pid"; then [ "$started" = "$when" ] || return 0; fi
    kill_group 0 "$pid" && group=$pid
    return 0
}

# signal_all DIR KEY NAME
signal_all() {
    group "$1"
    [ -z "$group" ] || kill_group "$3" "$group"
    for pid in $(members "$2"); do kill -s "$3" "$pid" 2>/dev/null; done
    return 0
}

# is_left DIR KEY: whether anything of it lives.
is_left() {
    [ -n "$(members "$2")" ] && return 0
    group "$1"
    [ -n "$group" ]
}

# end DIR KEY REASON GRACE WHY...: the first reason stays.
do_end() {
    boot_id
    dir=$1 key=$2 reason=$3 grace=$4
    shift 4
    if mkdir "$dir/ending" 2>/dev/null; then put "$dir/ending/why" "$reason $*"; fi
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
        [ ! -f "$dir/claim/by" ] || read -r by <"$dir/claim/by"
        [ -z "$by" ] || is_alive $by || is_left "$dir" "$key" || break
        nap
    done
}

# ------------------------------------------------------------------ run: one execution

do_run() {
    dir=$1 slot=$2 key=${1##*/}
    cd "$dir" || exit 1
    mkdir claim 2>/dev/null || exit 0
    boot_id
    start_of $$
    put claim/by "$boot $$ $started"
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
    if [ -d ending ]; then
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
    if [ -d ending ]; then
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
        # Whoever made the folder is about to write into it.
        while [ ! -f ending/why ]; do nap; done
        read -r reason first <ending/why
        why="$first$why"
    fi
    verdict="reason=$reason${tab}start=$began${tab}dur=$took${tab}slot=$slot"
    if [ -n "$number" ]; then verdict="$verdict${tab}signal=$number"; else verdict="$verdict${tab}code=$code"; fi
    [ -z "$why" ] || verdict="$verdict${tab}why=$why"
    [ -f pid ] && [ "$leads" = no ] && verdict="$verdict${tab}means=mark"
    note=0
    [ "$outcome" = - ] || note=$(size_of outcome)
    put verdict "$(size_of out) $(size_of err) $note $verdict"
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
    [ ! -d "$1/ending" ] || exit 143
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

# ------------------------------------------------------------------ keeper

# say OWNER KIND ID ATTEMPT OUT ERR OUTCOME DETAIL: number an event, keep it, pass it on.
say() {
    number=$((number + 1))
    line="E $number $2 $3 $4 $5 $6 $7 $8"
    printf '%s\n' "$line" >>"owners/$1"
    for sub in $subs; do
        [ "${sub#*:}" = "$1" ] && post "${sub%%:*}" "$line"
    done
    return 0
}

# post SESSION LINE
post() {
    if [ -d "sessions/$1" ]; then
        printf '%s\n' "$2" >>"sessions/$1/out"
        ring "$1"
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
    if [ "$cpus" -gt "$all_cpus" ] || [ "$gpus" -gt "$all_gpus" ] || [ "$memory" -gt "$all_memory" ]; then
        refuse "$1" "asks for $cpus cores, $memory bytes of memory, $gpus GPUs; this node has $all_cpus, $all_memory, $all_gpus"
        return 0
    fi
    queue="$queue $1"
}

refuse() {
    : >"runs/$1/said"
    mkdir "runs/$1/claim" 2>/dev/null
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
            mkdir "runs/$key/claim" 2>/dev/null
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

# on_cancel OWNER ID ATTEMPT GRACE
on_cancel() {
    key=$2.$3
    if unqueue "$key" || [ ! -d "runs/$key" ]; then
        why="before it came"
        [ ! -d "runs/$key" ] || why="before it started"
        # Whatever still comes for it must not start.
        mkdir -p "runs/$key/claim"
        [ -f "runs/$key/head" ] || put "runs/$key/head" "$2 $3 $1 1 0 0 - 1000 - - -"
        : >"runs/$key/said"
        say "$1" ended "$2" "$3" 0 0 0 "reason=cancelled${tab}why=$why"
        return 0
    fi
    [ ! -e "runs/$key/freed" ] && [ ! -e "runs/$key/said" ] || return 0
    head_of "$key"
    [ -z "${4-}" ] || grace=$4
    launch end "$state/runs/$key" "$key" cancelled "$grace" cancelled
}

on_pause() {
    key=$1.$2
    case " $running " in *" $key "*) ;; *) return 0 ;; esac
    dir=runs/$key
    if [ -e "$dir/paused" ] || [ -e "$dir/verdict" ] || [ -d "$dir/ending" ]; then return 0; fi
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
    done <"owners/$1" >"owners/$1.new"
    mv -f "owners/$1.new" "owners/$1"
}

# on_attach SESSION OWNER ACKNOWLEDGED CPUS MEMORY
on_attach() {
    [ "$4" = - ] || all_cpus=$4
    [ "$5" = - ] || all_memory=$5
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

on_forget() {
    for each in $queue $running; do
        head_of "$each"
        [ "$owner" != "$1" ] || on_cancel "$1" "$x" "$attempt" ""
    done
    for hold in $holds; do
        case $hold in *:"$1":*) on_unhold "$1" "${hold%%:*}" ;; esac
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
    take_lock keeper || exit 0
    exec 3<>ctl
    queue= running= holds= ending_holds= slots= subs= order=0 quiet=0
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
    : >keeper/ready
    while :; do
        fill
        IFS= read -r line <&3 || exit 1
        set -- $line
        verb=$1
        shift
        case $verb in
        attach | order | recall | cancel | pause | resume | ack | unhold | forget | status | begun | ended | free | tick) "on_$verb" "$@" ;;
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

# ------------------------------------------------------------------ session

make_state() {
    state=${ORCHESTRA_AGENT_STATE:+$ORCHESTRA_AGENT_STATE-sh}
    name=$(hostname 2>/dev/null || uname -n)
    if [ -z "$state" ]; then
        state=${XDG_STATE_HOME:-$HOME/.local/state}/orchestra/nodes/$(printf '%s' "$name" | tr -c 'A-Za-z0-9._-' '_')-sh
    fi
    if ! said=$(mkdir -p "$state/owners" "$state/runs" "$state/sessions" "$state/spool" 2>&1 && chmod 700 "$state" 2>&1); then
        echo "failed $said"
        exit 1
    fi
    cd "$state" || exit 1
    state=$(pwd)
    if [ ! -f id ]; then
        made=
        { read -r made </proc/sys/kernel/random/uuid; } 2>/dev/null || made=$$.$(date +%s)
        put id "$made"
    fi
    [ -p ctl ] || mkfifo ctl 2>/dev/null || [ -p ctl ] || { echo "failed mkfifo $state/ctl"; exit 1; }
}

# Start a keeper where there is none, and wait until it listens.
reach_keeper() {
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        by=
        [ ! -f keeper/by ] || read -r by <keeper/by
        if [ -n "$by" ] && is_alive $by; then [ -e keeper/ready ] && return 0; else launch keeper "$state"; fi
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
    printf '%s\n' "$orchestra_environment" >"environment.$$"
    printf 'unset SSH_AUTH_SOCK SSH_CONNECTION SSH_CLIENT SSH_TTY SHLVL OLDPWD\n' >>"environment.$$"
    mv -f "environment.$$" environment
    put mask "$orchestra_umask"
    reach_keeper
    mkdir -p "sessions/$$"
    cd "sessions/$$" || exit 1
    mkfifo bell
    : >out
    exec 4<>bell
    read -r id <"$state/id"
    read -r by <"$state/keeper/by"
    set -- $by
    means=
    for each in stat readlink tar taskset sha256sum; do command -v $each >/dev/null 2>&1 && means="$means,$each"; done
    user=${USER-}
    [ -n "$user" ] || user=$(id -un 2>/dev/null)
    printf 'hello\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$id" "$boot" "$name" "$(date +%s)" $$ "$2" "$detach" "$means" "$user" "$state"
    (emit) &
    emitter=$!
    trap 'kill $emitter 2>/dev/null; rm -rf "$state/sessions/$$"; exit 0' EXIT HUP TERM INT PIPE
    count=0
    while IFS= read -r line; do
        set -- $line
        [ $# -gt 0 ] || continue
        case $1 in
        order)
            # Its script follows, up to the marker.
            count=$((count + 1))
            dir=$state/spool/$$.$count
            marker=$2
            shift 2
            mkdir "$dir"
            put "$dir/head" "$*"
            while IFS= read -r text && [ "$text" != "$marker" ]; do printf '%s\n' "$text"; done >"$dir/script"
            [ "${text-}" = "$marker" ] || break
            tell "order $$.$count"
            ;;
        values)
            # The login's variables, by name: NUL-ended values.
            tag=$2
            shift 2
            for each; do eval "printf '%s\\0' \"\${$each-}\""; done >"reply.$tag"
            printf 'X %s %s\n' "$tag" "$(size_of "reply.$tag")" >>out
            (cd "$state" && ring $$)
            ;;
        attach | status | retire)
            verb=$1
            shift
            tell "$verb $$ $*"
            ;;
        bye) break ;;
        *) tell "$line" ;;
        esac
    done
}

# A keeper that ended meanwhile is replaced; it finds everything in its files.
tell() {
    by=
    { read -r by <"$state/keeper/by"; } 2>/dev/null && is_alive $by || (cd "$state" && reach_keeper) >&2
    tell_keeper "$*"
}

# ------------------------------------------------------------------ follow

# follow KEY OUT ERR: print `out AT SIZE` and bytes as they come; `end OUT ERR` once there is a verdict and all is printed.
do_follow() {
    make_state
    dir=$state/runs/$1 out=$2 err=$3 waited=0
    trap 'rm -f "$state/piece.$$"' EXIT HUP TERM INT PIPE
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
    dd if="$dir/$1" of="$state/piece.$$" bs=65536 skip=$from count=16 2>/dev/null || return 1
    got=$(wc -c <"$state/piece.$$")
    [ $((from * 65536 + got)) -gt "$at" ] || return 1
    # Survivors of the execution may have written more since the verdict.
    if [ -n "$final" ] && [ $((from * 65536 + got)) -gt "$length" ]; then got=$((length - from * 65536)); fi
    printf '%s %s %s\n' "$1" $((from * 65536)) $((got))
    piece "$state/piece.$$" $((got)) || exit 0
    at=$((from * 65536 + got))
}

# ------------------------------------------------------------------ files

# each_entry: prints, for the paths given, a NUL-ended path each, an empty one, then a line of facts each.
each_entry() {
    printf '%s\0' "$@"
    printf '\0'
    facts=$(stat -c '%f %s %Y %i %z' -- "$@" 2>/dev/null) && { printf '%s\n' "$facts"; return 0; }
    for path; do
        stat -c '%f %s %Y %i %z' -- "$path" 2>/dev/null || facts_of "$path"
    done
}

# Where there is no stat.
facts_of() {
    mode=0 size=0
    if [ -h "$1" ]; then mode=a1ff
    elif [ -d "$1" ]; then mode=41ed
    elif [ -f "$1" ]; then
        mode=81a4
        [ ! -x "$1" ] || mode=81ed
        size=$(wc -c <"$1") || mode=0
    else mode=1000; fi
    inode=$(ls -di -- "$1" 2>/dev/null) || inode=0
    set -- $inode
    echo "$mode $((size)) -1 ${1:-0} -"
}

# list FOLDER: everything below it.
list() {
    cd "$1" 2>/dev/null || { echo absent; return 0; }
    echo present
    find . ! -name . -exec sh "$me" entries {} + 2>/dev/null
    printf 'done\n'
}

# make FOLDER: like mkdir -p; prints how many folders it had to make, less the last.
make() {
    count=0 above=$1
    while [ ! -d "$above" ] && [ "$above" != / ]; do
        count=$((count + 1))
        above=${above%/*}
        [ -n "$above" ] || above=/
    done
    mkdir -p "$1" || return 1
    echo "$count"
}

# unmake FOLDER COUNT: remove so many empty folders, from the innermost.
unmake() {
    gone=$1 count=$2
    while [ "$count" -gt 0 ] && rmdir "$gone" 2>/dev/null; do
        gone=${gone%/*} count=$((count - 1))
    done
    return 0
}

# show FILE: its size and its bytes; a size of 0 when it is not there.
show() {
    size_of "$1"
    [ ! -f "$1" ] || cat "$1"
}

# prepare DIRECTORY FOLDER INDEX SNAPSHOT: make what is missing, say what is there.
prepare() {
    if [ ! -d "$1/.orchestra/sh" ]; then
        made=$(make "$1") && mkdir -p "$1/.orchestra/sh/code" "$1/.orchestra/sh/folders" || return 1
        put "$1/.orchestra/sh/made" "$made"
    fi
    if [ ! -d "$3" ]; then
        mkdir "$3" || return 1
        fresh=no
        [ -d "$2" ] || fresh=yes
        made=$(make "$2") || { rmdir "$3"; return 1; }
        put "$3/made" "$fresh $made"
        if [ $fresh = no ]; then list "$2" >"$3/before"; fi
        cd /
    fi
    # First the claim, then the look: whoever tidies up sees that it is needed.
    put "$3/snapshot" "$4"
    read -r fresh made <"$3/made"
    has=no
    [ ! -d "$1/.orchestra/sh/code/$4" ] || has=yes
    echo "ready $has $fresh"
    show "$3/manifest"
    show "$3/listing"
    show "$3/before"
    list "$2"
}

# look INDEX FOLDER: what is known of a folder that `prepare` made.
look() {
    fresh=no filled=no
    if [ -f "$1/made" ]; then
        filled=yes
        read -r fresh made <"$1/made"
    fi
    echo "known $filled $fresh"
    show "$1/manifest"
    show "$1/listing"
    show "$1/before"
    list "$2"
}

# take NUMBER PATH MARKER: a file with its size in front.
take() {
    if [ -h "$2" ] || [ ! -f "$2" ] || [ ! -r "$2" ]; then echo "gone $1"; return 0; fi
    printf 'file %s %s\n' "$1" "$(size_of "$2")"
    cat "$2"
    printf '\n%s\n' "$3"
}

# collect DIRECTORY: code that no folder needs any more goes, and with the last folder everything of ours.
collect() {
    set +f
    needed=" $(cat "$1"/.orchestra/sh/folders/*/snapshot 2>/dev/null | tr '\n' ' ')"
    for code in "$1"/.orchestra/sh/code/*; do
        # Of SNAPSHOT.xyz, which still arrives, the snapshot is claimed already.
        name=${code##*/}
        case "$needed" in *" ${name%%.*} "*) ;; *) rm -rf "$code" ;; esac
    done
    set -f
    rmdir "$1/.orchestra/sh/folders" 2>/dev/null || return 0
    made=0
    { read -r made <"$1/.orchestra/sh/made"; } 2>/dev/null
    rm -rf "$1/.orchestra/sh"
    rmdir "$1/.orchestra" 2>/dev/null
    unmake "$1" "$made"
}

# ------------------------------------------------------------------

case ${1-} in
session) do_session ;;
keeper)
    look_around
    do_keeper "$2"
    ;;
run)
    look_around
    state=${2%/runs/*}
    do_run "$2" "$3"
    ;;
main) do_main "$2" "$3" "$4" ;;
end)
    shift
    do_end "$@"
    ;;
follow) do_follow "$2" "$3" "$4" ;;
entries)
    shift
    echo batch
    each_entry "$@"
    ;;
do)
    script=
    newline='
'
    while IFS= read -r line && [ "$line" != "$2" ]; do script=$script$line$newline; done
    umask "$orchestra_umask"
    eval "$script"
    ;;
*)
    echo "usage: $0 session | follow KEY OUT ERR | do MARKER" >&2
    exit 2
    ;;
esac
