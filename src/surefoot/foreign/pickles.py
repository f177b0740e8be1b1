"""Pickles read as data: a machine of its own that knows the opcodes of a checkpoint, and calls nothing that a file names.

Python's unpickler imports what a file names and calls it. Here a name is a `Global`, an object of an unknown class an `Inert`, which holds
its state and does nothing. What a file wants called is refused by name, but for a short list that stands for data (`_calls`). Nor does a
small file make much of little: what is copied is counted, and a key of a dict is something short, which is hashed at once.
"""

from __future__ import annotations

import pickletools
import sys
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from surefoot.errors import DataError

HARMLESS = {
    "builtins": {
        "set",
        "frozenset",
        "list",
        "dict",
        "tuple",
        "int",
        "float",
        "bool",
        "str",
        "bytes",
        "bytearray",
        "complex",
        "slice",
        "object",
    },
    "collections": {"OrderedDict", "defaultdict"},
    "copyreg": {"_reconstructor"},
    "_codecs": {"encode"},
    "argparse": {"Namespace"},
    "types": {"SimpleNamespace"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
}
"""What may be named of the standard library; none of the rest of it belongs into a model."""
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_MARK = object()
_LONGEST = 1000  # letters of a name or a path
_REFUSED = "It is not opened; get the weights from another source."


@dataclass(frozen=True)
class Global:
    """A name that a file refers to: a class or a function, never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Inert:
    """What stands for an object of the class `kind`: what it was made with, and its state."""

    kind: Global
    args: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)

    def get(self, name: str, default: Any = None) -> Any:  # noqa: ANN401
        """An attribute, as its state has it."""
        return self.state.get(name, default) if isinstance(self.state, dict) else default


Call = Callable[[tuple[Any, ...]], Any]
Persistent = Callable[[Any], Any]


class Machine:
    """Reads one pickle.

    Args:
        calls: {"module.name": what stands for a call of it}, beside the harmless ones.
        persistent: what stands for a persistent id.
    """

    def __init__(self, calls: Mapping[str, Call], persistent: Persistent) -> None:
        self._calls = {**_calls(), **calls}
        self._persistent = persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._room = 0

    def load(self, data: bytes) -> Any:  # noqa: ANN401
        """The object that a pickle describes.

        Raises:
            DataError: an opcode, a name or a call that no checkpoint needs, or bytes that are no pickle.
        """
        self._room = 1000 + 2 * len(data)  # each letter and each item has a byte of its own, and is copied once
        try:
            for opcode, argument, _ in pickletools.genops(data):
                if opcode.name == "STOP":
                    return self._stack.pop()
                self._step(opcode.name, argument)
        except DataError:
            raise
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
            raise DataError(f"The pickle inside is damaged ({error!r}). Copy the file anew.") from error
        raise DataError("The pickle inside has no end. Copy the file anew.")

    def _step(self, name: str, argument: Any) -> None:  # noqa: ANN401
        if name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _LITERALS:
            self._stack.append(argument)
        elif name in _MEMO:
            self._remember(name, argument)
        elif handler := getattr(self, f"_do_{name.lower()}", None):
            handler(argument)
        elif name not in ("PROTO", "FRAME"):
            raise DataError(f"The pickle inside uses {name}, which no checkpoint needs. {_REFUSED}")

    def _remember(self, name: str, argument: Any) -> None:  # noqa: ANN401
        if name.endswith("GET"):
            self._stack.append(self._memo[int(argument)])
        else:
            self._memo[len(self._memo) if argument is None else int(argument)] = self._stack[-1]

    def _since_mark(self) -> list[Any]:
        place = next((i for i in range(len(self._stack) - 1, -1, -1) if self._stack[i] is _MARK), None)
        if place is None:
            raise DataError("The pickle inside is damaged (a mark is missing). Copy the file anew.")
        found = self._stack[place + 1 :]
        del self._stack[place:]
        return found

    def _copies(self, *values: object) -> None:
        """Count what is copied.

        Raises:
            DataError: far more than the file holds.
        """
        self._room -= sum(len(value) for value in values if isinstance(value, str | bytes | list | tuple | dict | set | frozenset))
        if self._room < 0:
            raise DataError(f"The pickle inside copies more than it holds, as no checkpoint does. {_REFUSED}")

    def _do_mark(self, _: object) -> None:
        self._stack.append(_MARK)

    def _do_pop(self, _: object) -> None:
        self._stack.pop()

    def _do_pop_mark(self, _: object) -> None:
        self._since_mark()

    def _do_dup(self, _: object) -> None:
        self._stack.append(self._stack[-1])

    def _do_list(self, _: object) -> None:
        self._stack.append(self._since_mark())

    def _do_tuple(self, _: object) -> None:
        self._stack.append(tuple(self._since_mark()))

    def _do_tuple1(self, _: object) -> None:
        self._stack[-1:] = [tuple(self._stack[-1:])]

    def _do_tuple2(self, _: object) -> None:
        self._stack[-2:] = [tuple(self._stack[-2:])]

    def _do_tuple3(self, _: object) -> None:
        self._stack[-3:] = [tuple(self._stack[-3:])]

    def _do_dict(self, _: object) -> None:
        found = self._since_mark()
        self._stack.append({_key(key): value for key, value in zip(found[::2], found[1::2], strict=True)})

    def _do_frozenset(self, _: object) -> None:
        self._stack.append(frozenset(map(_key, self._since_mark())))

    def _do_append(self, _: object) -> None:
        self._extend([self._stack.pop()])

    def _do_appends(self, _: object) -> None:
        self._extend(self._since_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, Inert):
            target.items.update(enumerate(items, start=len(target.items)))
        else:
            raise DataError(f"The pickle inside appends to {type(target).__name__}. It is not opened.")

    def _do_additems(self, _: object) -> None:
        items = self._since_mark()
        _expect(self._stack[-1], set).update(map(_key, items))

    def _do_setitem(self, _: object) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set(key, value)

    def _do_setitems(self, _: object) -> None:
        found = self._since_mark()
        for key, value in zip(found[::2], found[1::2], strict=True):
            self._set(key, value)

    def _set(self, key: Hashable, value: Any) -> None:  # noqa: ANN401
        target = self._stack[-1]
        _expect(target.items if isinstance(target, Inert) else target, dict)[_key(key)] = value

    def _do_global(self, argument: str) -> None:
        module, name = argument.split(" ", 1)
        self._stack.append(_named(module, name))

    def _do_stack_global(self, _: object) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._stack.append(_named(module, name))

    def _do_newobj(self, _: object) -> None:
        args, kind = self._stack.pop(), self._stack.pop()
        self._stack.append(_made(_expect(kind, Global), _expect(args, tuple)))

    def _do_newobj_ex(self, _: object) -> None:
        keywords, args, kind = self._stack.pop(), self._stack.pop(), self._stack.pop()
        self._stack.append(_made(_expect(kind, Global), _expect(args, tuple), _expect(keywords, dict)))

    def _do_reduce(self, _: object) -> None:
        args, called = self._stack.pop(), self._stack.pop()
        if not isinstance(called, Global) or str(called) not in self._calls:
            raise DataError(
                f"The pickle inside wants '{called if isinstance(called, Global) else type(called).__name__}' called when it is opened. "
                "Only tensors and containers are made of a file. It is not opened, and nothing in it was run; get the weights from "
                "another source."
            )
        self._copies(*_expect(args, tuple))
        self._stack.append(self._calls[str(called)](args))

    def _do_build(self, _: object) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if isinstance(target, Inert):
            first, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
            self._copies(first, slots)
            target.state = {**(first or {}), **slots} if isinstance(slots, dict) else state
        elif not isinstance(target, dict):  # an ordered dict of a module has a state of its own, _metadata, which is of no use here
            raise DataError(f"The pickle inside gives a state to {type(target).__name__}. It is not opened.")

    def _do_binpersid(self, _: object) -> None:
        self._stack.append(self._persistent(self._stack.pop()))


def _expect(value: Any, kind: type[Any]) -> Any:  # noqa: ANN401
    if not isinstance(value, kind):
        raise DataError(f"The pickle inside has {type(value).__name__} where {kind.__name__} belongs. It is not opened.")
    return value


def _key(value: Any) -> Any:  # noqa: ANN401
    """A key of a dict, or an item of a set: no tuples within tuples, which Python hashes without end, or until its stack is full.

    Raises:
        DataError: it is longer than a key can be.
    """
    parts = value if isinstance(value, tuple) else (value,)
    if len(parts) > _LONGEST or any(isinstance(part, tuple) for part in parts):
        raise DataError(f"The pickle inside has tuples within tuples as a key, which no checkpoint needs. {_REFUSED}")
    return value


def _text(*parts: Any, between: str = "") -> str:  # noqa: ANN401
    """Texts and numbers as one text.

    Raises:
        DataError: something else, or too long a text.
    """
    if not all(isinstance(part, str | int) for part in parts) or sum(len(part) for part in parts if isinstance(part, str)) > _LONGEST:
        raise DataError(
            f"The pickle inside has {', '.join(type(part).__name__ for part in parts[:5])} where a short text belongs. {_REFUSED}"
        )
    return between.join(map(str, parts))


def _pairs(*args: Any) -> dict[Any, Any]:  # noqa: ANN401
    """A dict of another one, or of pairs."""
    content = args[0] if args else {}
    return dict(content) if isinstance(content, dict) else {_key(key): value for key, value in content}


def _items(*args: Any) -> list[Any]:  # noqa: ANN401
    """The items of a set, each of which may be one."""
    return [_key(item) for item in (args[0] if args else ())]


def _named(module: Any, name: Any) -> Global:  # noqa: ANN401
    """The name, if it may be named at all.

    Raises:
        DataError: a part of the standard library that no model holds.
    """
    module, name = _PYTHON_2.get(_expect(module, str), module), _expect(name, str)
    if len(module) + len(name) > _LONGEST or not (module + name).isprintable():
        raise DataError(f"The pickle inside names something by {len(module) + len(name)} letters that cannot be a name. {_REFUSED}")
    if module.split(".")[0] in sys.stdlib_module_names | {"nt"} and name not in HARMLESS.get(module, ()):
        raise DataError(
            f"The pickle inside names '{module}.{name}', which belongs into no model. It is not opened, and nothing in it was run; "
            "get the weights from another source."
        )
    return Global(module, name)


def _made(kind: Global, args: tuple[Any, ...], keywords: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401
    """A new object of a class; the containers that stand for themselves are made, all else is inert."""
    if str(kind) in ("collections.OrderedDict", "builtins.dict") and not args:
        return {}
    return Inert(kind, args, None, dict(keywords or {}))


def _calls() -> dict[str, Call]:
    """What may be called, and what is made in its place."""
    return {
        "collections.OrderedDict": lambda args: _pairs(*args),
        "collections.defaultdict": lambda args: {},
        "builtins.set": lambda args: set(_items(*args)),
        "builtins.frozenset": lambda args: frozenset(_items(*args)),
        "builtins.dict": lambda args: _pairs(*args),
        "builtins.list": lambda args: list(*args),
        "builtins.tuple": lambda args: tuple(*args),
        "builtins.slice": lambda args: slice(*args),
        "_codecs.encode": lambda args: _expect(args[0], str).encode("latin1"),
        "copyreg._reconstructor": lambda args: _made(_expect(args[0], Global), ()),
        **{f"pathlib.{name}": lambda args: _text(*args, between="/") for name in HARMLESS["pathlib"]},
        "torch.device": lambda args: _text(*args, between=":"),
        "torch.Size": lambda args: tuple(*args),
        "torchvision.transforms.functional.InterpolationMode": lambda args: _text(args[0]),
    }


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}  # fmt: skip
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_MEMO = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"}
