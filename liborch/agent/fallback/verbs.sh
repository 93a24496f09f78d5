# The command line.

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
