# What transfers need: lists of folders, code of a snapshot claimed for a folder and let go again. Called by name in
# scripts that a client sends (`do`).

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

# missing FOLDER: prints how many folders `mkdir -p` would have to make.
missing() {
    count=0 above=$1
    while [ ! -d "$above" ] && [ "$above" != / ]; do
        count=$((count + 1))
        above=${above%/*}
        [ -n "$above" ] || above=/
    done
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
    alone claim_folder "$@" || return 1
    read -r fresh made <"$3/made"
    has=no
    [ ! -d "$1/.orchestra/sh/code/$4" ] || has=yes
    echo "ready $has $fresh"
    show "$3/manifest"
    show "$3/listing"
    show "$3/before"
    list "$2"
}

# claim_folder, as prepare: may be cut off anywhere and called again. What is to be undone one day is on record before it is done.
claim_folder() {
    sh=$1/.orchestra/sh
    if [ ! -f "$sh/made" ]; then
        made=$(missing "$1")
        mkdir -p "$sh/code" "$sh/folders" && put "$sh/made" "$made" || return 1
    fi
    mkdir -p "$sh/code" "$3" || return 1
    if [ ! -f "$3/made" ]; then
        made=$(missing "$2") fresh=yes
        if [ -d "$2" ]; then
            fresh=no
            list "$2" >"$3/before"
            cd /
        fi
        put "$3/made" "$fresh $made" || return 1
    fi
    # First the claim, then the look: whoever tidies up sees that it is needed.
    put "$3/snapshot" "$4" || return 1
    mkdir -p "$2" && return 0
    # What cannot be made is not ours.
    [ -f "$3/listing" ] || rm -rf "$3"
    return 1
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

# settle ARRIVED CODE: put code that came whole in its place. Of several who brought the same the first one's stays.
settle() {
    if [ -d "$2" ]; then rm -rf "$1"; else mv "$1" "$2" || return 1; fi
    # From a node that shares the folder somebody was quicker, and mv has put ours into theirs.
    [ ! -d "$2/${1##*/}" ] || rm -rf "$2/${1##*/}"
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

# probe PATH: whether a folder could be made and written there, and what room is there, in bytes and files (-1: not told).
probe() {
    found=$1
    while [ ! -d "$found" ] && [ "$found" != / ]; do
        found=${found%/*}
        [ -n "$found" ] || found=/
    done
    if [ ! -w "$found" ] || [ ! -x "$found" ]; then echo "error $found cannot be written"; return 0; fi
    set -- $(df -Pk "$found" 2>/dev/null | tail -n 1)
    bytes=-1 files=-1
    case ${4-} in '' | *[!0-9]*) ;; *) bytes=$(($4 * 1024)) ;; esac
    set -- $(df -Pi "$found" 2>/dev/null | tail -n 1)
    case ${4-} in '' | 0 | *[!0-9]*) ;; *) files=$4 ;; esac
    echo "room $bytes $files"
}
