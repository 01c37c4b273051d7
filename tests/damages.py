"""Ways in which a JSON document may be damaged: name -> what becomes of its bytes."""

import json

MISSING = {"schema_version": 1}


def spoiled(value):
    """The same keys with values of other types, at every depth."""
    if isinstance(value, dict):
        return {k: v if k == "schema_version" else spoiled(v) for k, v in value.items()} or [1]
    return {"x": 1} if isinstance(value, list | str) else [value]


def all_spoiled(text: bytes) -> bytes:
    lines = [json.dumps(spoiled(json.loads(line))) for line in text.splitlines()] if b"\n{" in text else None
    return ("\n".join(lines) + "\n" if lines else json.dumps(spoiled(json.loads(text)))).encode()


DAMAGES = {
    "empty": lambda text: b"",
    "cut": lambda text: text[: len(text) // 2],
    "not UTF-8": lambda text: b"\xff\xfe" + text,
    "a list": lambda text: b"[1, 2]",
    "a string": lambda text: b'"text"',
    "a number": lambda text: b"7",
    "null": lambda text: b"null",
    "deep": lambda text: b"[" * 100_000,
    "deep and closed": lambda text: b'{"schema_version": 1, "x": ' + b"[" * 900 + b"]" * 900 + b"}",
    "wrong types": all_spoiled,
    "keys missing": lambda text: json.dumps(MISSING).encode(),
}
