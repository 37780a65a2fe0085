"""Reads ingestd's log lines, strictly: a line that does not parse is a finding, not noise."""
import re

_HEAD = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) (debug|info|warn|error) ([a-z][a-z0-9_]*)")
_FIELD = re.compile(r' ([a-z_][a-z0-9_]*)=(?:"((?:[^"\\]|\\.)*)"|([^\s"=\\]+))')
_ESCAPE = re.compile(r"\\(?:u([0-9a-f]{4})|x([0-9a-f]{2})|(.))")


class Event(dict):
    """One line: the fields as a dict of strings, and name, level, time."""

    def __init__(self, name, level, time, fields, line):
        super().__init__(fields)
        self.name, self.level, self.time, self.line = name, level, time, line

    def matches(self, name, fields):
        return self.name == name and all(self.get(k) == str(v) for k, v in fields.items())

    def __repr__(self):
        return self.line


def _unescape(text):
    def one(m):
        if m[1]:
            return chr(int(m[1], 16))
        if m[2]:
            # A byte that is no UTF-8, as Python's surrogateescape has it.
            return chr(0xDC00 + int(m[2], 16))
        return {"n": "\n", "t": "\t"}.get(m[3], m[3])

    return _ESCAPE.sub(one, text)


def parse(line):
    """The Event of a line, or None if it is no log line."""
    head = _HEAD.match(line)
    if head is None:
        return None
    fields, at = {}, head.end()
    while at < len(line):
        field = _FIELD.match(line, at)
        if field is None or field[1] in fields:
            return None
        fields[field[1]] = _unescape(field[2]) if field[2] is not None else field[3]
        at = field.end()
    return Event(head[3], head[2], head[1], fields, line)
