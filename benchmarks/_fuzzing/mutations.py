"""Mutations of bytes, of JSON-like values and of protobuf messages, all drawn from one random
source."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DEPTH = 100_000  # brackets of a nested text: deeper than any interpreter's stack
# levels of a nested value: deep enough for recursive code to notice, and cheap to make
NESTED = 200

SCALARS: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    8,
    127,
    255,
    2**31,
    2**63,
    -(2**63),
    2**70,
    10**400,
    0.0,
    -0.0,
    0.5,
    -1.5,
    1e-320,
    1e308,
    math.nan,
    math.inf,
    -math.inf,
    "",
    " ",
    "x",
    "0",
    "-1",
    "1e400",
    "nan",
    "int8",
    "float",
    "float32",
    "object",
    "O",
    "group:0",
    "group:3",
    "group:99999999999999999999",
    "block:0x1",
    "intx",
    "int",
    "int99",
    "../../etc/passwd",
    "/dev/zero",
    "a\x00b",
    "\ud800",
    "é" * 40,
    "x" * 5000,
    "%s{0}",
)
"""Values that code tends to take for something else."""

OBJECTS: tuple[Any, ...] = (
    b"",
    b"\xff\xfe",
    {1, 2},
    object(),
    1 + 2j,
    range(3),
    Path("x"),
    ...,
    len,
    ValueError,
    [[]],
    {1: 2},
    ({},),
)
"""Python values that no file can hold: only a caller can give them."""


class Mutator:
    """Draws mutations.

    Args:
        source: The random numbers.
        off: Return everything as it is: what an unchanged input is expected to pass.
    """

    def __init__(self, source: random.Random, *, off: bool = False) -> None:
        self.random = source
        self.off = off

    def bytes(self, data: bytes) -> bytes:
        """Return bytes with a few changes."""
        if self.off:
            return data
        changed = bytearray(data)
        for _ in range(self.random.choice((1, 1, 1, 2, 4, 16))):
            changed = self.random.choice(_BYTES)(self.random, changed)
        return bytes(changed)

    def text(self, text: str) -> bytes:
        """Return a JSON text with a change below its grammar: bytes, nesting, or a constant that
        JSON does not have."""
        if self.off:
            return text.encode()
        way = self.random.randrange(8)
        if way == 0:
            return ("[" * DEPTH).encode()
        if way == 1:
            return ('{"a":' * DEPTH).encode()
        if way == 2:
            return self.random.choice(
                (
                    b"",
                    b"null",
                    b"[]",
                    b"{}",
                    b"3",
                    b'"x"',
                    b"NaN",
                    b"\xef\xbb\xbf{}",
                    text.encode("utf-16"),
                )
            )
        return self.bytes(text.encode())

    def json(self, value: Any, *, objects: bool = False) -> Any:
        """Return a copy of a JSON-like value with one to three changes at random places.

        Args:
            value: Mappings, lists and scalars.
            objects: Also put in what no file can hold.
        """
        changed = _copy(value)
        if self.off:
            return changed
        for _ in range(self.random.choice((1, 1, 1, 2, 3))):
            changed = self._json_once(changed, objects)
        return changed

    def _json_once(self, value: Any, objects: bool) -> Any:
        places = list(_places(value))
        if not places:
            return self.junk(objects)
        # Large tables would otherwise take nearly all the changes: a third of them go near the top.
        near = places[: max(4, len(places) // 20)]
        holder, key = self.random.choice(
            near if self.random.random() < 0.35 else places
        )
        way = self.random.randrange(8)
        if way == 0:
            del holder[key]
        elif way == 1 and isinstance(holder, dict):
            holder[str(self.random.choice(SCALARS))] = holder.pop(key)
        elif way == 2:
            holder[key] = (
                [holder[key]] if self.random.random() < 0.5 else {"a": holder[key]}
            )
        elif way == 3:
            other, name = self.random.choice(places)
            with_other = other[name] if _holds(other, name) else None
            holder[key] = _copy(with_other)
        elif (
            way == 4
            and isinstance(holder[key], (int, float))
            and not isinstance(holder[key], bool)
        ):
            number = holder[key]
            # No float holds an integer of more than 1023 bits.
            real = float(number) if abs(number) < 2**1023 else 1e308
            holder[key] = self.random.choice(
                (-number, number + 1, number * 1000, real, str(number))
            )
        else:
            holder[key] = self.junk(objects)
        return value

    def junk(self, objects: bool = False) -> Any:
        """Return a value that nobody expects."""
        way = self.random.randrange(10)
        if objects and way < 3:
            return self.random.choice(OBJECTS)
        if way == 3:
            return [
                self.random.choice(SCALARS) for _ in range(self.random.randrange(4))
            ]
        if way == 4:
            return {
                str(self.random.choice(SCALARS)): self.random.choice(SCALARS)
                for _ in range(self.random.randrange(3))
            }
        if way == 5:
            return _nested(self.random.choice(SCALARS), self.random.random() < 0.5)
        return self.random.choice(SCALARS)

    def proto(self, message: Any) -> None:
        """Change one to four fields of a protobuf message or of what it holds."""
        if self.off:
            return
        for _ in range(self.random.choice((1, 1, 2, 4))):
            self._proto_once(message)

    def _proto_once(self, message: Any) -> None:
        holder = self.random.choice(list(_messages(message)))
        field = self.random.choice(holder.DESCRIPTOR.fields)
        set_fields = [f for f, _ in holder.ListFields()]
        if set_fields and self.random.random() < 0.7:
            field = self.random.choice(set_fields)
        way = self.random.randrange(4)
        if way == 0:
            holder.ClearField(field.name)
        elif field.is_repeated:
            self._repeated(holder, field)
        elif field.message_type is not None:
            inner = getattr(holder, field.name)
            others = [
                m for m in _messages(message) if m.DESCRIPTOR is field.message_type
            ]
            if others:
                # By way of bytes: to copy a message into a part of itself ends the process.
                inner.ParseFromString(
                    self.random.choice(others).SerializePartialToString()
                )
            else:
                inner.SetInParent()
        else:
            setattr(holder, field.name, self._scalar(field))

    def _repeated(self, holder: Any, field: Any) -> None:
        values = getattr(holder, field.name)
        way = self.random.randrange(4)
        if len(values) and way == 0:
            del values[self.random.randrange(len(values))]
        elif len(values) and way == 1 and field.message_type is not None:
            values.add().ParseFromString(
                self.random.choice(list(values)).SerializePartialToString()
            )
        elif len(values) > 1 and way == 2 and field.message_type is not None:
            held = [type(v).FromString(v.SerializePartialToString()) for v in values]
            self.random.shuffle(held)
            del values[:]
            values.extend(held)
        elif field.message_type is not None:
            values.add()
        elif len(values) and way == 3:
            values[self.random.randrange(len(values))] = self._scalar(field)
        else:
            values.append(self._scalar(field))

    def _scalar(self, field: Any) -> Any:
        kind = field.cpp_type
        # Protobuf lets no other number in; changed bytes do.
        if kind == field.CPPTYPE_ENUM:
            return self.random.choice(
                [value.number for value in field.enum_type.values]
            )
        if kind == field.CPPTYPE_INT32:
            return self.random.choice((0, 1, 2, 3, 6, 7, 9, 16, -1, 99, 2**31 - 1))
        if kind == field.CPPTYPE_INT64:
            return self.random.choice(
                (0, 1, 2, 3, 5, 7, -1, -2, 99, 2**20, 2**31, 2**40, 2**63 - 1, -(2**63))
            )
        if kind in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64):
            return self.random.choice((0, 1, 7, 2**31))
        if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
            return self.random.choice((0.0, -1.0, math.nan, math.inf, 1e38, 1e-45))
        if kind == field.CPPTYPE_BOOL:
            return self.random.random() < 0.5
        if field.type == field.TYPE_BYTES:
            return self.random.choice(
                (b"", b"\xff\xfe\xff", b"SAME", b"\x00" * 64, b"x" * 3)
            )
        return self.random.choice(
            (
                "",
                "x",
                "Relu",
                "Conv",
                "MatMul",
                "input",
                "é",
                "a b",
                "ai.onnx.ml",
                "com.microsoft",
                "../w",
                "w" * 300,
            )
        )


def _flip(source: random.Random, data: bytearray) -> bytearray:
    if data:
        data[source.randrange(len(data))] ^= 1 << source.randrange(8)
    return data


def _overwrite(source: random.Random, data: bytearray) -> bytearray:
    at = source.randrange(len(data) + 1)
    span = source.choice((1, 2, 4, 8, 64))
    fill = source.choice((bytes(span), b"\xff" * span, source.randbytes(span)))
    data[at : at + span] = fill
    return data


def _truncate(source: random.Random, data: bytearray) -> bytearray:
    return data[
        : source.choice(
            (0, 1, 4, 8, source.randrange(len(data) + 1), max(0, len(data) - 1))
        )
    ]


def _cut(source: random.Random, data: bytearray) -> bytearray:
    at = source.randrange(len(data) + 1)
    del data[at : at + source.choice((1, 4, 32))]
    return data


def _repeat(source: random.Random, data: bytearray) -> bytearray:
    at = source.randrange(len(data) + 1)
    return data[:at] + data[max(0, at - 32) :]


def _front(source: random.Random, data: bytearray) -> bytearray:
    # Headers lie at the front, and hold most of what a parser trusts.
    if data:
        data[source.randrange(min(len(data), 256))] = source.choice(
            (0, 1, 0x7F, 0x80, 0xFF, source.randrange(256))
        )
    return data


_BYTES: tuple[Callable[[random.Random, bytearray], bytearray], ...] = (
    _flip,
    _flip,
    _overwrite,
    _truncate,
    _cut,
    _repeat,
    _front,
)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of everything inside, outermost first."""
    level = [value]
    while level:
        below = []
        for holder in level:
            keys: list[Any] = (
                list(holder)
                if isinstance(holder, dict)
                else list(range(len(holder)))
                if isinstance(holder, list)
                else []
            )
            for key in keys:
                yield holder, key
                below.append(holder[key])
        level = below


def _holds(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, (list, tuple)) else value


def _nested(value: Any, mapping: bool) -> Any:
    for _ in range(NESTED):
        value = {"a": value} if mapping else [value]
    return value


def _messages(message: Any) -> Iterator[Any]:
    """Yield a message and every message inside."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else (value,):
                yield from _messages(inner)


def dump(value: Any) -> str:
    """Return JSON text; NaN and infinities stand in it as Python writes them, and lone surrogates
    as escapes."""
    return json.dumps(value, default=str)
