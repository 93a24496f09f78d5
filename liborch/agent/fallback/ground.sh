#!/bin/sh
# The agent for nodes without python3: the same promises in POSIX sh, slower and with fewer means. One program, joined
# from the files of this folder by liborch/drive/shell.py, in this order:
#
#   ground    what all of it stands on: the words above, clock, files, locks, the processes of an execution
#   run       one execution: claims it, becomes its command, waits, writes its verdict, ends it
#   keeper    owns the queue, the slots and the numbers of events; what clients ask for
#   recovery  what was left behind: by an earlier keeper, by processes that were killed, by clients that stay away
#   session   one client on one channel; following output
#   files     what transfers need to know and do
#   verbs     the command line
#
# It leaves to others: what is asked of it and how its words become events (liborch/drive/shell_link.py), which files
# travel (liborch/drive/shell_transfer.py). Measured against dash and busybox ash; needs /proc, mkfifo and ln.
#
# Processes, by the word they are started with:
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
#   id, number (of the last event), environment, ctl, lock (the keeper: boot id, pid, start time), ready (it listens)
#   owners/OWNER     events not yet acknowledged, one a line
#   seen/OWNER       boot id, and when on the clock below it was last there
#   runs/ID.ATTEMPT/ head (what the keeper needs), script (what is run), seq, claim, out, err, verdict, ...
#   spare/           set aside for a full disk, see keep_room
#   sessions/PID.START/  out (lines on their way to one client), bell (FIFO: there are new ones)
#
# Files are written under another name and renamed; what only one may have is made by `ln`, whole and at once. Nothing here
# parses what a client or an execution wrote, except words it split at blanks itself.

case ${1-} in
session) orchestra_environment=$(export -p) orchestra_umask=$(umask) ;;
do) orchestra_umask=$(umask) ;;
esac
me=$0
umask 077
set -f
tab=$(printf '\t')

boot_id() { boot=; { read -r boot </proc/sys/kernel/random/boot_id; } 2>/dev/null; boot=${boot:-unknown}; }

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

put() { printf '%s\n' "$2" >"$1.$$" && mv -f "$1.$$" "$1"; }

# keep_room FOLDER: set aside what verdicts and events need on a disk that is full, in files, since names run out as well.
keep_room() {
    [ ! -d "$1" ] || return 0
    rm -rf "$1.new"
    mkdir "$1.new" 2>/dev/null || return 0
    for page in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do
        dd if=/dev/zero of="$1.new/$page" bs=4096 count=1 2>/dev/null || { rm -rf "$1.new"; return 0; }
    done
    mv "$1.new" "$1"
}

# claim FILE LINE: make it, whole and at once, or fail because it is there.
claim() {
    printf '%s\n' "$2" >"$1.$$" && ln "$1.$$" "$1" 2>/dev/null
    set -- $? "$1.$$"
    rm -f "$2"
    return "$1"
}

# take_lock FILE: make it ours; returns 1 when it is a living process's, 2 when it cannot be made.
take_lock() {
    start_of $$
    mine="$boot $$ $started"
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        claim "$1" "$mine" && return 0
        if { read -r by <"$1"; } 2>/dev/null; then
            [ "$by" != "$mine" ] || return 0
            is_alive $by && return 1
            # A dead one's lock is taken away by one at a time, who looks again: it may be a living one's by now.
            if take_lock "$1.stale"; then
                by=
                { read -r by <"$1"; } 2>/dev/null
                is_alive $by || rm -f "$1"
                rm -f "$1.stale"
                continue
            fi
        fi
        nap
    done
    return 2
}

# alone COMMAND ...: run it while no other process of this node does; what prepares a folder and what tidies up must not meet.
# It must not wait for a client, who may never come back.
alone() {
    boot_id
    lock=${me%/*}/folders-$boot.lock
    while :; do
        take_lock "$lock"
        case $? in
        0) break ;;
        1) nap ;;
        *) echo "$lock cannot be made" && return 1 ;;
        esac
    done
    "$@"
    set -- $?
    rm -f "$lock"
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
