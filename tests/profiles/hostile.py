"""A corpus of profiles that are broken, or made to break their reader: {what it is: its bytes}.

Run as a program, it loads each file of a folder and prints, as JSON, what became of it, how long that took, and the peak of
memory: so that the limits are measured on a process that did nothing else.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

_BOMB = b"a: &a [x,x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n" % (97 + i, 97 + i, *([96 + i] * 10))
    for i in range(1, 12)
)

CORPUS: dict[str, bytes] = {
    # Nothing, or nothing like a profile.
    "empty": b"",
    "blanks": b"  \n\n \n",
    "comments": b"# nothing\n# here\n",
    "empty documents": b"---\n---\n...\n",
    "null": b"null\n",
    "a word": b"hello",
    "a number": b"12",
    "a list": b"- a\n- b\n",
    "a list of mappings": b"- {name: a, ssh: b}\n",
    "a quoted word": b"'hello'",
    "empty mapping": b"{}",
    # No text.
    "NUL": b"name: a\nssh: b\0c\n",
    "ELF": b"\x7fELF\x02\x01\x01\0\0\0\0\0" + bytes(range(256)) * 10,
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xcb\x48\xcd\xc9\xc9\x07\x00",
    "PNG": b"\x89PNG\r\n\x1a\n",
    "UTF-16": "name: a\nssh: b\n".encode("utf-16"),
    "UTF-16 without mark": "name: a\n".encode("utf-16-le"),
    "Latin-1": "name: caf\xe9\nssh: b\n".encode("latin-1"),
    "cut in a character": "ssh: é".encode()[:-1],
    "overlong UTF-8": b"ssh: a\xc0\xaf\n",
    "surrogate in UTF-8": b"ssh: \xed\xa0\x80\n",
    "surrogate escape": b'ssh: "\\ud800"\n',
    "control characters": b"ssh: a\x01b\n",
    "escape sequence": b"ssh: \x1b]0;owned\x07\n",
    "delete": b"ssh: a\x7fb\n",
    # No YAML.
    "tab indent": b"ssh: b\nslots:\n\tcpus: 2\n",
    "tab and blanks": b"ssh: b\nslots:\n  \tcpus: 2\n",
    "open bracket": b"ssh: b\nnodes: [a, b\n",
    "open brace": b"ssh: b\nslots: {cpus: 2\n",
    "open quote": b"ssh: 'b\nname: c\n",
    "closing bracket": b"ssh: ]\n",
    "two colons": b"ssh: b: c\n",
    "bad indentation": b"ssh: b\n  name: c\n",
    "no blank after colon": b"ssh:b\nname: c\n",
    "percent": b"%YAML 9.9\n---\nssh: b\n",
    "reserved": b"ssh: @b\n",
    "backtick": b"ssh: `b`\n",
    "bad escape": b'ssh: "\\q"\n',
    "bad block header": b"execution:\n- |99\n  x\n",
    "conflict markers": b"<<<<<<< HEAD\nssh: a\n=======\nssh: b\n>>>>>>> other\n",
    "JSON with a comma too many": b'{"ssh": "b",, "name": "c"}',
    # YAML that is made to hurt.
    "python object": b"ssh: !!python/object/apply:os.system ['touch owned']\n",
    "python name": b"ssh: !!python/name:os.system\n",
    "python tuple": b"nodes: !!python/tuple [a, b]\n",
    "own tag": b"ssh: !secret b\n",
    "binary tag": b"ssh: !!binary aGVsbG8=\n",
    "set tag": b"nodes: !!set {a, b}\n",
    "tag of a key": b"!!str ssh: b\n",
    "verbatim tag": b"ssh: !<tag:yaml.org,2002:python/object/new:os.system> [id]\n",
    "alias bomb": _BOMB,
    "wide alias bomb": b"a: &a [" + b"x," * 2000 + b"]\nb: [" + b"*a," * 2000 + b"]\n",
    "alias inside its anchor": b"nodes: &a [*a]\n",
    "alias inside its anchor, deeper": b"nodes: &a [{ssh: *a}]\n",
    "alias of nothing": b"ssh: *missing\n",
    "alias across documents": b"name: a\nssh: &x b\n---\nname: c\nssh: *x\n",
    "merge key": b"name: a\nssh: b\nslots: {<<: {cpus: 1}}\n",
    "merge bomb": b"a: &a {x: 1}\n"
    + b"".join(
        b"b%d: &b%d {<<: [*%s, *%s]}\n" % (i, i, p, p)
        for i in range(30)
        for p in [b"a" if not i else b"b%d" % (i - 1)]
    ),
    "duplicate key": b"name: a\nssh: b\nssh: c\n",
    "duplicate key below": b"ssh: b\nslots: {cpus: 1, cpus: 2}\n",
    "duplicate key, quoted": b"ssh: b\n'ssh': c\n",
    "duplicate unknown key": b"ssh: b\nx: 1\nx: 2\n",
    "a list as a key": b"? [a, b]\n: c\nssh: d\n",
    "a mapping as a key": b"{a: b}: c\n",
    "a null key": b"~: c\nssh: d\n",
    "an empty key": b": c\n",
    "NaN": b"ssh: b\nslots: {cpus: .nan}\n",
    "infinity": b"ssh: b\nslots: {memory: .inf}\n",
    "infinite walltime": b"ssh: b\nbatch_system: slurm\nallocation: {walltime: .inf}\n",
    "endless walltime": b"ssh: b\nbatch_system: slurm\nallocation: {walltime: " + b"9" * 400 + b"d}\n",
    "endless number": b"ssh: b\nslots: " + b"9" * 100_000 + b"\n",
    "endless size": b"ssh: b\nslots: {memory: " + b"9" * 5000 + b"P}\n",
    "on for a number": b"ssh: b\nslots: on\n",
    "1e3 for a number": b"ssh: b\nslots: 1e3\n",
    "012 for a number": b"ssh: b\nslots: 012\n",
    "deep lists": b"nodes: " + b"[" * 100_000,
    "deep mappings": b"{a: " * 50_000,
    "deep blocks": b"".join(b" " * i + b"a:\n" for i in range(600)),
    "deep list blocks": b"- " * 60_000 + b"a",
    "deep flow in one line": b"nodes: " + b"[" * 40 + b"]" * 40,
    "many keys": b"".join(b"k%d: 1\n" % i for i in range(20_000)),
    "many items": b"ssh: b\nexecution: {" + b"a," * 60_000 + b"}\n",
    "many documents": b"---\nname: a\nssh: b\n" * 8000,
    "many anchors": b"nodes: [" + b",".join(b"&a%d {x: 1}" % i for i in range(12_000)) + b"]\n",
    "one long key": b"a" * 200_000 + b": 1\n",
    "one long word": b"ssh: " + b"a" * 200_000 + b"\n",
    "one long line of colons": b"a:" * 100_000,
    "one long line of question marks": b"? " * 100_000,
    "one long comment without an end": b"#" * 200_000,
    "long plain text over lines": b"ssh: a\n" + b"  b\n" * 60_000,
    "quotes": b"'" * 200_001,
    "percents": b"%" * 200_000,
    "exclamations": b"ssh: " + b"!" * 200_000,
    "ampersands": b"ssh: " + b"& " * 100_000,
    "1 MB": b"# x\n" * 262_144,
    "50 MB": b"execution: [" + b"a, " * 17_000_000 + b"]\n",
}


def file_name(index: int) -> str:
    """Where a file of the corpus is put."""
    return f"{index:03}.yaml"


def main() -> None:
    """Load every file of the folder that is the first argument."""
    from liborch.errors import ProfileError
    from liborch.profiles.load import load_file

    out = []
    for path in sorted(Path(sys.argv[1]).iterdir()):
        begun = time.perf_counter()
        try:
            load_file(path)
            result: dict[str, object] = {"error": None, "line": None}
        except ProfileError as error:
            result = {"error": str(error), "line": error.line}
        out.append({**result, "file": path.name, "took_s": time.perf_counter() - begun})
    # Not getrusage: that counts in what this process was before exec, a copy of the one that runs the tests.
    status = Path("/proc/self/status").read_text()
    print(json.dumps({"files": out, "peak_kib": int(status.split("VmHWM:")[1].split()[0])}))


if __name__ == "__main__":
    main()
