"""Unpickles plain containers (sets as lists); whatever else a pickle names becomes an inert marker with the name.

Python's own unpickler calls what a pickle names, sets attributes on it, and reserves memory by the sizes that it
claims. Here its instructions are read by `pickletools`, and only those that build containers are carried out.
"""

import pickletools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

MAX_INSTRUCTIONS = 1_000_000  # some 30 a tensor
_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_REFUSED = {"INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER", "PERSID"}


class Global(NamedTuple):
    """The name of a class or function. Nothing is imported."""

    module: str
    name: str


class Opaque(NamedTuple):
    """Stands for an object that a pickle makes by calling `maker`; its contents are dropped."""

    maker: Global


class Unpickler:
    """Reads one pickle.

    Attributes:
        makers: `module.name` -> the function that makes what this name makes, of plain arguments.
        persistent_load: gives what a persistent id stands for.
    """

    def __init__(self, makers: Mapping[str, Callable[..., Any]], persistent_load: Callable[[Any], Any]):
        self._makers = makers
        self._persistent_load = persistent_load
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def load(self, file: Any) -> Any:
        """Reads up to the end of the pickle that starts here.

        Args:
            file: a binary file whose `read` gives no more than is there, as `io.BytesIO` and `mmap` do.

        Raises:
            ValueError, TypeError, LookupError: it is no pickle of plain containers, or a very long one.
        """
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count > MAX_INSTRUCTIONS:
                raise ValueError(f"a pickle of more than {MAX_INSTRUCTIONS} instructions")
            if opcode.name == "STOP":
                return self._stack.pop()
            self._step(opcode.name, argument)
        raise ValueError("it ends early")

    def _step(self, name: str, argument: Any) -> None:
        stack, memo = self._stack, self._memo
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                stack.append(_MARK)
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._since_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(Global(*argument.split(" ", 1)))
            case "BINPERSID":
                stack.append(self._persistent_load(stack.pop()))
            case "BUILD":  # attributes of an object: nothing is read of them
                stack.pop()
            case "STACK_GLOBAL" | "REDUCE" | "NEWOBJ" | "NEWOBJ_EX":
                self._make(name)
            case "TUPLE" | "LIST" | "DICT" | "FROZENSET" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                self._build(name)
            case "APPEND" | "APPENDS" | "SETITEM" | "SETITEMS" | "ADDITEMS":
                self._fill(name)
            case _ if name in _REFUSED:
                raise ValueError(f"a pickle with the instruction {name}")
            case _:
                stack.append(_EMPTY[name]() if name in _EMPTY else _CONSTANTS.get(name, argument))

    def _since_mark(self) -> list[Any]:
        items = []
        while (item := self._stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _make(self, name: str) -> None:
        """Puts on the stack a class that is named, or what calling it makes."""
        stack = self._stack
        keywords = stack.pop() if name == "NEWOBJ_EX" else {}
        arguments, maker = stack.pop(), stack.pop()
        if name == "STACK_GLOBAL":
            stack.append(Global(str(maker), str(arguments)))
            return
        if not isinstance(maker, Global) or type(arguments) is not tuple:
            raise TypeError(f"a pickle that calls a {type(maker).__name__}")
        stack.append(self.call(maker, *arguments) if not keywords else Opaque(maker))

    def call(self, maker: Global, *arguments: Any) -> Any:
        """Returns what a known name makes of these arguments, or a marker."""
        known = self._makers.get(f"{maker.module}.{maker.name}")
        return known(*arguments) if known else Opaque(maker)

    def _build(self, name: str) -> None:
        """Makes a container of the items on the stack."""
        stack = self._stack
        if name in _TUPLES:
            count = _TUPLES[name]
            if len(stack) < count:
                raise IndexError("a tuple of more than there is")
            items = stack[-count:]
            del stack[-count:]
        else:
            items = self._since_mark()
        if name == "DICT":
            stack.append(as_dict(zip(items[::2], items[1::2], strict=True)))
        else:
            stack.append(items if name == "LIST" else tuple(items))

    def _fill(self, name: str) -> None:
        """Puts the items on the stack into the container below them."""
        stack = self._stack
        if name.endswith("S"):
            items = self._since_mark()
        else:
            items = [stack.pop() for _ in range(2 if name == "SETITEM" else 1)][::-1]
        container, kind = stack[-1], dict if name.startswith("SETITEM") else list
        if isinstance(container, Opaque):
            return
        if type(container) is not kind:
            raise TypeError(f"a pickle that fills a {type(container).__name__} as a {kind.__name__}")
        if kind is list:
            container.extend(items)
        else:
            container.update(as_dict(zip(items[::2], items[1::2], strict=True), len(container)))


def as_dict(pairs: Iterable[tuple[Any, Any]] = (), start: int = 0) -> dict[Any, Any]:
    """Returns a dictionary in which a key that is neither text nor a plain number becomes a number from `start` on.

    Only keys of text can be names of tensors, and keys of other types can be made to have equal hashes by the million.
    """
    return {_key(key, number): value for number, (key, value) in enumerate(pairs, start)}


def _key(key: Any, number: int) -> Any:
    return key if type(key) is str or (type(key) is int and abs(key) < 1 << 32) else number
