"""The frontend's side of `procedures`: POSIX sh that keeps a folder for each allocation, and starts and cancels it.

`$XDG_STATE_HOME/orchestra/allocations/TOKEN/`, mode 0700, holds

=========  ============================================================================================================
start      the script of start_allocation, and `cancel` the one of cancel_allocation, as they were when it was asked for
variables  `export` lines, what start_allocation begins with
process    pid (its process group as well), host and boot id of who runs start_allocation
note       what start_allocation left (`liborch.profiles.procedures`); `cancelled` what cancel_allocation left
log        the first MiB of what both printed
state      `started TIME 0`, `failed TIME CODE`, `over TIME 0` (cancelled); none before
cancelling a folder, while somebody cancels: one at a time
=========  ============================================================================================================

Each script is read whole before any of it runs, see `_reading.shell`. Functions only define; the last lines of each act.
"""

from __future__ import annotations

from typing import Final

from liborch.profiles.procedures import quote

#: Code of a submission that could not make its folder: nothing was started.
NO_ROOM: Final = 71

_HEAD: Final = r"""
umask 077
base=${XDG_STATE_HOME:-$HOME/.local/state}/orchestra/allocations
host=$(uname -n)
boot=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)
boot=${boot:-none}
state() { printf '%s\n' "$*" >"$here/state.new" && mv -f "$here/state.new" "$here/state"; }
# Whether who runs start_allocation lives. One of another frontend with the same home cannot be seen from here, and is believed.
lives() {
    [ -s "$here/process" ] || return 0
    read -r pid its_host its_boot <"$here/process"
    [ "$its_host" != "$host" ] || { [ "$its_boot" = "$boot" ] && kill -0 "$pid" 2>/dev/null; }
}
where() {
    if [ -d "$here/cancelling" ]; then echo cancelling 0 0
    elif [ -s "$here/state" ]; then cat "$here/state"
    elif lives; then echo starting 0 0
    # It may have come to its end since the line before the last.
    elif [ -s "$here/state" ]; then cat "$here/state"
    else echo vanished 0 0; fi
}
"""

_RUNNER: Final = r"""
shell=sh
! command -v bash >/dev/null 2>&1 || shell=bash
# Whether start_allocation may have got something: it came beyond its first command, or set something new in it.
begun() {
    [ -s "$here/note" ] || return 1
    [ "$(tr '\0' '\n' <"$here/note" | sed -n 2p)" -lt 2 ] || return 0
    [ "$(tr '\0' '\n' <"$here/note" | grep -c '^RUNAWAY')" -gt "$(grep -c '^export RUNAWAY' "$here/variables")" ]
}
# Runs cancel_allocation in the folder and with the variables that start_allocation left. The note's fields are words here.
undo() {
    [ -s "$here/cancel" ] || return 0
    rm -f "$here/code"
    xargs -0 -x -n 100000 -s 1000000 sh -c '
        cd -- "${4%?}" 2>/dev/null || cd
        shell=$0 here=$1
        for each; do case $each in RUNAWAY*=*) export "$each" ;; esac; done
        ORCHESTRA_OUTCOME=$here/cancelled "$shell" "$here/cancel" </dev/null
        echo "$?" >"$here/code"' "$shell" "$here" <"$here/note"
    return "$(cat "$here/code" || echo 1)"
}
"""

# Run as `sh -c ... FOLDER`.
_START: Final = (
    "here=$0\n"
    + _HEAD
    + _RUNNER
    + r"""
printf '%s %s %s\n' "$$" "$host" "$boot" >"$here/process"
cd
. "$here/variables"
ORCHESTRA_OUTCOME=$here/note $shell "$here/start" </dev/null
code=$?
if [ "$code" -eq 0 ]; then
    state started "$(date +%s)" 0
else
    ! begun || undo
    state failed "$(date +%s)" "$code"
fi
"""
)

_CANCEL: Final = (
    "here=$0\n"
    + _HEAD
    + _RUNNER
    + r"""
# To the group, or without setsid to the shell alone. (No `--`: not every shell's kill knows it.)
signalled() { kill -"$1" "-$pid" 2>/dev/null || kill -"$1" "$pid" 2>/dev/null; }
if [ ! -s "$here/state" ] && [ -s "$here/process" ] && lives && [ "$its_host" = "$host" ]; then
    signalled TERM
    for tick in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        signalled 0 || break
        sleep 0.1
    done
    signalled KILL
fi
code=0
case $(cat "$here/state" 2>/dev/null) in
    over* | failed*) ;;
    started*) undo || code=$? ;;
    *) ! begun || undo || code=$? ;;
esac
printf '%s\n' "$code" >"$here/cancel_code"
# What could not be cancelled may be tried again.
[ "$code" -ne 0 ] || grep -qs '^failed' "$here/state" || state over "$(date +%s)" 0
rmdir "$here/cancelling"
"""
)

# Detached, in a group of its own (by setsid; a host without it loses sight of what start_allocation started). What it prints is kept up to a MiB, the rest is read and dropped: a
# procedure that prints for ever fills no disk, and one that leaves a process behind holds nobody up.
_DETACH: Final = r"""
detached() {
    set -- "$1" "$here"
    group=
    ! command -v setsid >/dev/null 2>&1 || group=setsid
    { $group sh -c "$1" "$2" </dev/null 2>&1 | { dd bs=4096 count=256 2>/dev/null; exec cat >/dev/null; } >>"$here/log"; } \
        </dev/null >/dev/null 2>&1 &
}
"""


def submit(token: str, start: str, cancel: str, variables: str) -> str:
    """The script that asks for an allocation: makes its folder, starts it once, prints its id."""
    return (
        _HEAD
        + _DETACH
        + f"""
mkdir -p "$base" || exit {NO_ROOM}
find "$base" -mindepth 2 -maxdepth 2 -name state -mtime +7 2>/dev/null | while read -r old; do
    case $(cat "$old") in started*) ;; *) rm -rf "${{old%/state}}" ;; esac
done
here=$base/{token}
if [ ! -d "$here" ]; then
    new=$base/.{token}.$$
    mkdir "$new" &&
        printf %s {quote(start)} >"$new/start" &&
        printf %s {quote(cancel)} >"$new/cancel" &&
        printf %s {quote(variables)} >"$new/variables" ||
        {{ rm -rf "$new"; exit {NO_ROOM}; }}
    # Of two that come at once one starts it: a folder is not moved over one that holds something.
    if mv -T "$new" "$here" 2>/dev/null; then
        detached {quote(_START)}
    else
        rm -rf "$new"
    fi
fi
[ -d "$here" ] || exit {NO_ROOM}
echo 0_{token}
"""
    )


def query(tokens: tuple[str, ...]) -> str:
    """The script that tells of every allocation that is not over, and of `tokens`. See `procedures` for the form."""
    return (
        _HEAD
        + f"""
asked=' {" ".join(tokens)} '
for here in "$base"/*; do
    [ -d "$here" ] || continue
    token=${{here##*/}}
    set -- $(where)
    case $1 in over | failed) case $asked in *" $token "*) ;; *) continue ;; esac ;; esac
    note=0
    case $1 in started | failed) [ ! -f "$here/note" ] || note=$(wc -c <"$here/note") ;; esac
    log=$(tail -c 400 "$here/log" 2>/dev/null | tr -d '\\000' | tr '\\n' ' ')
    printf '%s %s %s %s %s\\n' "$token" "$1" "$2" "$3" $note
    [ $note -eq 0 ] || cat "$here/note"
    printf '\\n%s\\n' "$log"
done
"""
    )


def cancel(tokens: tuple[str, ...], wait_s: int) -> str:
    """The script that cancels allocations, and waits: prints `TOKEN CODE` for each, the code of cancel_allocation, or `-`."""
    return (
        _HEAD
        + _DETACH
        + f"""
for token in {" ".join(tokens)}; do
    here=$base/$token
    [ -d "$here" ] || continue
    case $(where) in over* | failed*) continue ;; esac
    if mkdir "$here/cancelling" 2>/dev/null; then
        rm -f "$here/cancel_code"
        detached {quote(_CANCEL)}
    fi
done
tick=0
for token in {" ".join(tokens)}; do
    here=$base/$token
    [ -d "$here" ] || {{ echo "$token 0"; continue; }}
    while [ -d "$here/cancelling" ] && [ "$tick" -lt {wait_s * 10} ]; do sleep 0.1; tick=$((tick + 1)); done
    if [ -d "$here/cancelling" ]; then echo "$token -"; continue; fi
    case $(where) in
        over* | failed*) echo "$token 0" ;;
        *) echo "$token $(cat "$here/cancel_code" 2>/dev/null || echo -)"; tail -c 400 "$here/log" >&2 ;;
    esac
done
"""
    )


def outcome(token: str) -> str:
    """The script that prints what start_allocation left."""
    return _HEAD + f'exec cat "$base/{token}/note"\n'


def once(script: str, variables: str, folder: str) -> str:
    """The script that runs a procedure here and now: its note is printed, whatever it prints goes to the standard error."""
    return f"""
umask 077
room=$(mktemp -d "${{TMPDIR:-/tmp}}/orchestra.XXXXXXXXXX") || exit {NO_ROOM}
trap 'rm -rf "$room"' EXIT
trap 'exit 129' HUP INT TERM
printf %s {quote(script)} >"$room/script" || exit {NO_ROOM}
{variables}cd -- {quote(folder)} 2>/dev/null || cd
shell=sh
! command -v bash >/dev/null 2>&1 || shell=bash
ORCHESTRA_OUTCOME=$room/note $shell "$room/script" </dev/null >&2
code=$?
cat "$room/note"
exit $code
"""
