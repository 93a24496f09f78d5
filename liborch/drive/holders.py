"""What holds an allocation whose nodes are entered through the batch system (`connect: batch_system`): an agent on every node.

A link to such a node is a step of the allocation, and what a step leaves in the background is ended with it on most clusters. So
links must not start the agent: the allocation's own script does, in one step over all nodes that lasts as long as the allocation,
and begins it again should it end. The script carries the agent. Links wait until it answers.

Only Slurm needs that: the others' ways into a node leave what is started there alone.

And what holds one that has only a part of each node, entered by ssh: a process of it on every node, which an agent can look at to
know the part (`liborch.agent.grants`).
"""

from __future__ import annotations

import base64
import shlex

from liborch.agent.pack import packed
from liborch.specs import HostProfile

#: A link waits so long for the agent of a node, in tenths of a second; then it starts one itself.
_PATIENCE = 200
#: Which file says that the agent answers; in sh, with the allocation's number in $j.
_MARK = "m=${XDG_STATE_HOME:-$HOME/.local/state}/orchestra/held-$j-$(uname -n)"
#: Options of sbatch that say how many GPUs of each node an allocation has, even where it has all of the cores.
_GPUS = ("--gres", "--gpus", "-G")
#: Runs something once on every node of the allocation.
_STEP = (
    "srun --overlap --ntasks-per-node=1 --cpu-bind=none --mem=0 --kill-on-bad-exit=0 --quiet "
    '--nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES"'
)
#: Runs on each node. A pipe that never ends is the input of a relay, so that the agent always has somebody who asks.
_KEEP = """
umask 077
c=${{XDG_CACHE_HOME:-$HOME/.cache}}/orchestra
a=$c/agent-{hash}
f=$c/.agent-{hash}.$(uname -n).$$
j=$SLURM_JOB_ID
export ORCHESTRA_ALLOCATION="$j" {part}
{mark}
mkdir -p "$c" "${{m%/*}}" && base64 -d >"$f" || exec sleep infinity
command -v python3 >/dev/null 2>&1 || exec sleep infinity
rm -f "$m"
d=$(mktemp -d) && mkfifo "$d/f" && exec 3<>"$d/f" || exec sleep infinity
rm -r "$d"
over() {{
    # The agent minds no TERM; it is ended with its allocation at once, and not when the system has lost patience.
    rm -f "$m" "$f"
    for l in "${{m%/*}}"/nodes/*/*.lock; do
        read k <"$l" && grep -qz "^SLURM_JOB_ID=$j\\$" "/proc/$k/environ" && kill -STOP "$k" || continue
        s=$(cat "/proc/$k/task/$k/children")
        kill -9 "$k"
        # What it runs has sessions of its own, which not every system knows to be of the allocation.
        for k in $s; do kill -9 -- "-$k"; done
    done 2>/dev/null
    rm -rf "${{m%/*}}/nodes/$(uname -n)@$j"
    exit 0
}}
trap over TERM
while :; do
    if [ -f "$a/entry.py" ]; then set -- "$a/entry.py" {hash}; else cp "$f" "$f.zip"; set -- "$f.zip" "$a" {hash}; fi
    python3 -I -S "$@" <&3 3<&- | {{ head -c 1 >/dev/null && : >"$m"; exec cat >/dev/null; }} 3<&-
    rm -f "$m"
    sleep 1
done
"""


def grants_part(profile: HostProfile) -> bool:
    """Whether allocations of this host may have parts of nodes, and its batch system says which to processes of theirs."""
    if profile.batch_system != "slurm" or profile.allocation is None:
        return False
    from liborch.batch_systems.slurm_words import SHARES

    options = profile.allocation.options
    is_whole = "--exclusive" in options
    return any(each.startswith(_GPUS) or (not is_whole and each.startswith(SHARES)) for each in options)


def holder_script(profile: HostProfile) -> str:
    """Lines of sh that hold an allocation of this host; "": nothing has to be done there."""
    if profile.batch_system != "slurm":
        return ""
    if profile.connect != "batch_system":
        return f"{_STEP} sleep infinity\nexec sleep infinity" if grants_part(profile) else ""
    code_hash, program = packed()
    part = "ORCHESTRA_AWAITS_GRANT=1" if grants_part(profile) else ""
    keep = _KEEP.format(hash=code_hash, mark=_MARK, part=part)
    return "\n".join(
        (
            f"{_STEP} sh -c {shlex.quote(keep)} <<'orch-agent'",
            base64.encodebytes(program).decode().rstrip(),
            "orch-agent",
            # Where no step could be started, or none is left.
            "exec sleep infinity",
        )
    )


def awaiting(profile: HostProfile, allocation: str) -> str:
    """sh that returns when the allocation's agent answers on this node, to be put before what a link begins with."""
    if profile.batch_system != "slurm":
        return ""
    number = allocation.partition(";")[0]
    return (
        f"j={number}; {_MARK}; n=0; "
        f'while [ ! -e "$m" ] && [ $n -lt {_PATIENCE} ]; do sleep 0.1; n=$((n + 1)); done; '
    )
