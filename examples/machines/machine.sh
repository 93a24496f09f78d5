# What a machine offers, and how fast one core of it counts. No first line and no exec bit: the ending says how to run it.
most=${1:-300000}

begin=$(date +%s%N)
i=0
while [ "$i" -lt "$most" ]; do i=$((i + 1)); done
took_ms=$((($(date +%s%N) - begin) / 1000000))

{
    echo "name    $(hostname)"
    echo "system  $(uname -sr)"
    echo "cores   $(getconf _NPROCESSORS_ONLN)"
    echo "count   $most in $took_ms ms"
} > machine.txt
cat machine.txt
