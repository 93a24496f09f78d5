"""What an order is: its parts, its key, and what is wrong with one that nobody could carry out."""

import re

#: Ids become names of files and marks of processes.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}\Z")


def key_of(x, attempt):
    """Return the name of one attempt."""
    return "%s.%d" % (x, attempt)


def to_bytes(text):
    """Return the bytes that a string of a message stands for, whatever this process's own encoding is."""
    return text.encode("utf-8", "surrogateescape")


def to_text(data):
    """The other way."""
    return data.decode("utf-8", "surrogateescape")


def check_ids(pairs):
    """Raise ValueError unless these begin with good (id, attempt)s."""
    for pair in pairs:
        x, attempt = pair[0], pair[1]
        if not isinstance(x, str) or not _ID.match(x):
            raise ValueError("no id: %.80r" % (x,))
        if type(attempt) is not int or not 0 <= attempt < 1 << 31:
            raise ValueError("no attempt: %.80r" % (attempt,))


def unfold(owner, common, items):
    """Yield the whole orders of a message: its common part under each one's own."""
    for x, attempt, own in items:
        order = dict(common)
        for name, value in own.items():
            if name == "env" and "env" in common:
                value = dict(common["env"], **value)
            order[name] = value
        order["x"] = x
        order["a"] = attempt
        order["o"] = owner
        yield order


def needs(order):
    """Return (cores, bytes of memory, GPUs: whole ones, or a share of one below 1)."""
    return (order.get("cpus") or 1, order.get("mem") or 0, order.get("gpus") or 0)


def wishes(order):
    """Return what `needs` does, and which GPUs will do (numbers or ids; None: any)."""
    return needs(order) + (order.get("gpu_ids") or None,)


_KINDS = (
    (("cpus", "mem"), int, lambda value: 0 <= value < 1 << 60),
    (("gpus",), (int, float), lambda value: 0 <= value < 1 << 60 and (value < 1 or value % 1 == 0)),
    (("numa",), int, lambda value: 0 <= value < 1 << 20),
    (("wall", "grace"), (int, float), lambda value: 0 <= value < 1e12),
    (("cwd", "lease", "node"), str, lambda value: "\0" not in value),
    (("argv", "gpu_ids"), list, lambda value: all(type(word) is str for word in value)),
    (
        ("env",),
        dict,
        lambda value: all(type(name) is str and type(each) is str for name, each in value.items()),
    ),
    (
        ("tty",),
        list,
        lambda value: len(value) == 2 and all(type(each) is int and 0 < each < 1 << 16 for each in value),
    ),
)
_CHECKS = {name: (kinds, good) for names, kinds, good in _KINDS for name in names}


def problem(order):
    """Return what is wrong with an order, or "": one that is on the log must never trip the keeper."""
    for name, value in order.items():
        check = _CHECKS.get(name)
        if check is not None and value is not None:
            kinds, good = check
            if not isinstance(value, kinds) or isinstance(value, bool) or not good(value):
                return "%s of the order is no good: %.200r" % (name, value)
    return ""
