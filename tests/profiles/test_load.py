"""Both forms of a profile, key by key."""

from __future__ import annotations

from pathlib import Path

import pytest

from liborch.errors import ProfileError
from liborch.profiles.load import KEYS, KEYS_2020, load_bytes, load_file
from liborch.specs import AllocationSpec, HostProfile, NodeSpec, Procedures, SlotSpec

OURS = """\
name: cluster
ssh: cluster-frontend              # alias in ~/.ssh/config
directory: /scratch/$USER/orchestra
batch_system: slurm                # none | slurm | oar | pbs | sge | lsf | procedures
allocation: {nodes: 4, walltime: 2h, most: 3, options: [--partition=long, --account=me]}
slots: {cpus: 2, gpus: 1}          # or a number per node, or auto
connect: ssh                       # or batch_system, where nodes accept no ssh
execution: ['module load python', 'cd $RUNAWAY_PWD', './$RUNAWAY_SCRIPT_PATH $RUNAWAY_ARGUMENTS']
---
name: desks
nodes: [desk1, desk2, {ssh: gpu1, slots: {gpus: 1}}]
"""

OF_2020 = """\
---
name: farm
ssh_configuration: farm-frontend
node_proxycommand: "ssh -A -l alice farm -W $RUNAWAY_NODE_ID:22"
start_allocation:
  - "module load slurm"
  - export RUNAWAY_JOB_ID=$(sbatch --parsable --wrap 'sleep 1h')
  - "export RUNAWAY_NODES=`squeue -h -j $RUNAWAY_JOB_ID -o %N`"
cancel_allocation:
  - scancel $RUNAWAY_JOB_ID
allocation_duration: 45
get_node_handles:
  - export RUNAWAY_HANDLES='16 17'
directory: /projects/team/alice/executions
execution:
  - cd $RUNAWAY_PWD
  - |
    ./$RUNAWAY_SCRIPT_PATH $RUNAWAY_ARGUMENTS
    true
"""


def load(text: str, file: str = "h/box.yaml") -> list[HostProfile]:
    return load_bytes(file, text.encode())


def one(text: str) -> HostProfile:
    (profile,) = load(text)
    return profile


def wrong(text: str) -> ProfileError:
    with pytest.raises(ProfileError) as caught:
        load(text)
    return caught.value


def test_our_form_with_two_hosts_in_one_file(tmp_path: Path):
    file = tmp_path / "cluster.yaml"
    file.write_text(OURS)
    cluster, desks = load_file(file)
    assert cluster == HostProfile(
        name="cluster",
        ssh="cluster-frontend",
        directory="/scratch/$USER/orchestra",
        batch_system="slurm",
        allocation=AllocationSpec(
            nodes=4, walltime_s=7200.0, most=3, options=("--partition=long", "--account=me")
        ),
        slots=SlotSpec(cpus=2, gpus=1),
        connect="ssh",
        execution=("module load python", "cd $RUNAWAY_PWD", "./$RUNAWAY_SCRIPT_PATH $RUNAWAY_ARGUMENTS"),
        source=str(file),
    )
    assert desks.nodes == (NodeSpec("desk1"), NodeSpec("desk2"), NodeSpec("gpu1", SlotSpec(gpus=1)))
    assert desks.ssh == "desk1"


def test_the_2020_form_unchanged():
    assert one(OF_2020) == HostProfile(
        name="farm",
        ssh="farm-frontend",
        directory="/projects/team/alice/executions",
        batch_system="procedures",
        execution=("cd $RUNAWAY_PWD", "./$RUNAWAY_SCRIPT_PATH $RUNAWAY_ARGUMENTS\ntrue\n"),
        procedures=Procedures(
            start_allocation=(
                "module load slurm",
                "export RUNAWAY_JOB_ID=$(sbatch --parsable --wrap 'sleep 1h')",
                "export RUNAWAY_NODES=`squeue -h -j $RUNAWAY_JOB_ID -o %N`",
            ),
            cancel_allocation=("scancel $RUNAWAY_JOB_ID",),
            get_node_handles=("export RUNAWAY_HANDLES='16 17'",),
            node_proxycommand="ssh -A -l alice farm -W $RUNAWAY_NODE_ID:22",
            allocation_duration_s=2700.0,
        ),
        source="h/box.yaml",
    )


def test_the_2020_form_with_empty_procedures_as_it_was_written_out_by_the_program_itself():
    text = (
        '---\nname: localhost\nssh_configuration: localhost_proxy\nnode_proxycommand: ""\nstart_allocation:\n  - ""\n'
        "cancel_allocation: []\nallocation_duration: 1\nget_node_handles:\n  - echo 16\ndirectory: /tmp/x\nexecution:\n  - $RUNAWAY_COMMAND"
    )
    procedures = one(text).procedures
    assert procedures == Procedures(
        start_allocation=("",), get_node_handles=("echo 16",), allocation_duration_s=60.0
    )


def test_a_relative_directory_of_2020_is_below_the_home_folder():
    assert (
        one(OF_2020.replace("/projects/team/alice/executions", "executions")).directory == "$HOME/executions"
    )
    assert one(OF_2020.replace("/projects/team/alice/executions", "~/x")).directory == "$HOME/x"


@pytest.mark.parametrize("key", KEYS_2020)
def test_every_key_of_the_2020_form_is_read_and_its_type_is_checked(key):
    lines = {
        "name": "x",
        "ssh_configuration": "y",
        "start_allocation": "[a]",
        "get_node_handles": "[b]",
        "directory": "/d",
        "execution": "[c]",
    }
    error = wrong("".join(f"{k}: {v}\n" for k, v in {**lines, key: "{a: {b: c}}"}.items()))
    assert (error.key, error.line) == (key, list({**lines, key: ""}).index(key) + 1)
    assert error.expected


@pytest.mark.parametrize(
    "key", ["ssh_configuration", "start_allocation", "get_node_handles", "directory", "execution"]
)
def test_a_missing_key_of_the_2020_form_is_named(key):
    lines = {
        "name": "x",
        "ssh_configuration": "y",
        "start_allocation": "[a]",
        "get_node_handles": "[b]",
        "directory": "/d",
        "execution": "[c]",
    }
    del lines[key]
    assert f"the key {key} is missing" in str(wrong("".join(f"{k}: {v}\n" for k, v in lines.items())))


@pytest.mark.parametrize("key", KEYS)
def test_every_key_of_our_form_is_read_and_its_type_is_checked(key):
    error = wrong(
        f"ssh: x\nslots: 2\n{key}: {{a: {{b: c}}}}\n"
        if key not in ("ssh", "slots")
        else f"{key}: {{a: {{b: c}}}}\n"
    )
    assert (error.key, error.line) == (key, 1 if key in ("ssh", "slots") else 3)
    assert error.expected


@pytest.mark.parametrize(
    ("text", "slots"),
    [
        ("4", SlotSpec(count=4)),
        ("'4'", SlotSpec(count=4)),
        ("auto", SlotSpec()),
        ("{count: 2}", SlotSpec(count=2)),
        ("{cpus: 2, memory: 4G}", SlotSpec(cpus=2, memory_bytes=4 << 30)),
        ("{gpus: 0}", SlotSpec(gpus=0)),
        ("{gpus: 0.5}", SlotSpec(gpus=0.5)),
    ],
)
def test_slots_are_a_number_auto_or_what_each_holds(text, slots):
    assert one(f"ssh: x\nslots: {text}").slots == slots
    assert one(f"nodes: [{{ssh: x, slots: {text}}}]").nodes == (NodeSpec("x", slots),)


def test_the_name_is_the_files_when_there_is_none():
    assert one("ssh: x").name == "box"
    assert "the key name is missing" in str(wrong("name: a\nssh: x\n---\nssh: y"))


def test_this_machine_under_another_name():
    assert one("name: here\nssh: local").ssh == "local"
    assert "built in" in str(wrong("name: local\nssh: x"))


@pytest.mark.parametrize(
    ("written", "directory"),
    [
        ("/a/b", "/a/b"),
        ("$HOME/x", "$HOME/x"),
        ("~/x", "$HOME/x"),
        ("'~'", "$HOME"),
        ("${X}/y z", "${X}/y z"),
    ],
)
def test_directories_begin_at_the_root_or_with_a_variable(written, directory):
    assert one(f"ssh: x\ndirectory: {written}").directory == directory


@pytest.mark.parametrize("walltime", ["2h", "7200", "02:00:00", "120m", "1h60m"])
def test_a_walltime_in_every_spelling(walltime):
    allocation = one(f"ssh: x\nbatch_system: slurm\nallocation: {{walltime: {walltime}}}").allocation
    assert allocation == AllocationSpec(walltime_s=7200.0)


def test_procedures_in_our_form():
    text = "ssh: x\nbatch_system: procedures\nprocedures: {start_allocation: a, get_node_handles: [b], allocation_duration: 1h}"
    assert one(text).procedures == Procedures(
        start_allocation=("a",), get_node_handles=("b",), allocation_duration_s=3600.0
    )


@pytest.mark.parametrize(
    "word", ["on", "no", "012", "1e3", "2024-01-01", "1:30", "0x10", ".nan", "true", "'null'", "1_000"]
)
def test_words_that_other_readers_turn_into_something_else_stay_words(word):
    assert one(f"ssh: x\nexecution: [{word}]").execution == (word.strip("'"),)
    assert one(f"ssh: x\nname: {word}").name == word.strip("'")


@pytest.mark.parametrize(
    "word",
    [
        "on",
        "1e3",
        "0x10",
        "012",
        "1_000",
        "2.0",
        "+2",
        "-1",
        "0",
        "9" * 30,
        "1000001",
        ".inf",
        ".nan",
        "''",
        "two",
        "[2]",
        "~",
        "²",
        "٣",
    ],
)
def test_a_number_is_written_in_digits(word):
    error = wrong(f"ssh: x\n\nslots:\n  cpus: {word}")
    assert (error.line, error.key) == (4, "slots.cpus")
    assert "whole number" in error.expected


@pytest.mark.parametrize(
    ("text", "line", "key", "says"),
    [
        ("shh: x", 1, None, "unknown key 'shh'; did you mean ssh?"),
        ("ssh: x\nslots: {cpu: 2}", 2, "slots", "unknown key 'cpu'; did you mean cpus?"),
        ("ssh: x\nnodes:\n- a\n- {ssh: b, slot: 2}", 4, "nodes[2]", "did you mean slots?"),
        ("nodes:\n- a\n- {slots: 2}", 3, "nodes[2]", "the key ssh is missing"),
        ("nodes: [a,\n b, a]", 2, "nodes[3]", "there twice"),
        ("nodes: []", 1, "nodes", "empty"),
        ("name: x", 1, None, "the key ssh is missing"),
        ("ssh: x\nallocation: {nodes: 2}", 2, "allocation", "no batch system"),
        ("ssh: x\nconnect: batch_system", 2, "connect", "no batch system"),
        ("ssh: x\nbatch_system: slrum", 2, "batch_system", "did you mean slurm?"),
        ("ssh: x\nbatch_system: slurm\nnodes: [a]", 3, "nodes", "come from its batch system"),
        (
            "ssh: x\nbatch_system: pbs\nconnect: batch_system",
            3,
            "connect",
            "nodes of pbs cannot be entered through it",
        ),
        ("ssh: x\nbatch_system: slurm\nslots: {gpus: 1.5}", 3, "slots.gpus", "a share of one GPU"),
        ("ssh: x\nbatch_system: procedures", 2, "batch_system", "procedures are missing"),
        (
            "ssh: x\nprocedures: {start_allocation: a, get_node_handles: b}",
            2,
            "procedures",
            "batch_system is none",
        ),
        ("ssh: x\nstart_allocation: [a]", 2, None, "goes below `procedures`"),
        ("ssh_configuration: x\nbatch_system: slurm", 2, None, "the 2020 form"),
        ("ssh_configuration: x\nssh: y", 2, None, "it is `ssh_configuration`"),
        ("ssh_config: x\nhost_directory: y", 1, None, "it is `ssh_configuration` since 2020"),
        ("ssh: x\nbefore_execution: [y]", 2, None, "in front of those of `execution`"),
        ("ssh: -oProxyCommand=id", 1, "ssh", "begins with a dash"),
        ("ssh: a;id", 1, "ssh", "holds ';'"),
        ("ssh: a:99999", 1, "ssh", "the port '99999'"),
        ("ssh: ''", 1, "ssh", "is empty"),
        ("ssh:", 1, "ssh", "has no value"),
        ("ssh: null", 1, "ssh", "no value"),
        ('ssh: "a\\nb"', 1, "ssh", "control character"),
        ("ssh: x\ndirectory: runs", 2, "directory", "found 'runs'"),
        ("ssh: x\ndirectory: ~", 2, "directory", "found ~"),
        ("ssh: x\nexecution: [echo a: b]", 2, "execution[1]", "found a mapping where a command belongs"),
        ("ssh: x\nexecution: [a, ~]", 2, "execution[2]", "no value"),
        ('ssh: x\nexecution: ["a\\0b"]', 2, "execution[1]", "NUL"),
        ("ssh: x\nname: a/b", 2, "name", "found 'a/b'"),
        ("ssh: x\nname: -rf", 2, "name", "found '-rf'"),
        ("ssh: x\nslots: many", 2, "slots", "found 'many'"),
        ("ssh: x\nslots: {memory: lots}", 2, "slots.memory", "found 'lots'"),
        ("ssh: x\nslots: {memory: 0}", 2, "slots.memory", "found '0'"),
        ("ssh: x\nbatch_system: oar\nallocation: {walltime: soon}", 3, "allocation.walltime", "found 'soon'"),
        ("ssh: x\nbatch_system: oar\nallocation: {walltime: 0}", 3, "allocation.walltime", "found '0'"),
        ("ssh: x\nbatch_system: oar\nallocation: {options: -p}", 3, "allocation.options", "found '-p'"),
        ("name: a\nssh: x\n---\nname: a\nssh: y", 4, "name", "described twice (first in line 1)"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_key(text, line, key, says):
    error = wrong(text)
    assert (error.file, error.line, error.key) == ("h/box.yaml", line, key)
    assert says in str(error)
    assert str(error).startswith(f"h/box.yaml:{line}: ")


def test_a_message_says_everything_in_one_line():
    text = "ssh: x\nbatch_system: slurm\nallocation: {nodes: four}"
    assert str(wrong(text)) == (
        "h/box.yaml:3: allocation.nodes: found 'four'; expected a whole number of at least 1, digits only"
    )


def test_a_value_is_quoted_without_its_terminal_controls():
    message = str(wrong('ssh: x\nbatch_system: "\\e]0;owned\\a' + "x" * 500 + '"'))
    assert message.isprintable()
    assert len(message) < 300
