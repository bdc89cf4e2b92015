"""Unpickling of arrays by name, and of nothing else. A pickle is a program; this one is given no functions to call."""

import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from io import SEEK_END
from struct import unpack
from typing import Any, BinaryIO, ClassVar

import numpy as np

from ..errors import GNDetError

_NUMBER_OR_TEXT = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248]|[SU][1-9]\d{0,5})")


class DType:
    """Stands for ``numpy.dtype``: numbers and text only. An array of objects would hold whatever the pickle makes."""

    def __init__(self, code: str, *_: object):
        if not isinstance(code, str) or not _NUMBER_OR_TEXT.fullmatch(code):
            raise pickle.UnpicklingError(f"it has an array of type {code!r}, and not of numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        """Of numpy's state only the byte order is taken: the rest could give the type another size, or pointers."""
        if state[1] not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError(f"it has an array with the byte order {state[1]!r}")
        self.dtype = self.dtype.newbyteorder(state[1])


class Array(np.ndarray):
    """Stands for ``numpy.ndarray``, as which it goes on. Its bytes must be there, as many as its shape says."""

    def __new__(cls, *_: object) -> "Array":
        return super().__new__(cls, 0, np.uint8)

    def __setstate__(self, state: tuple) -> None:  # type: ignore[override]
        _, shape, dtype, fortran, data = state
        _check_size(shape, dtype, data := _bytes(data))
        super().__setstate__((1, shape, dtype.dtype, bool(fortran), data))  # type: ignore[arg-type]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """In a file it is numpy's, and nothing of gn_det's."""
        return self.view(np.ndarray).__reduce_ex__(protocol)


def _from_buffer(data: bytes, dtype: DType, shape: tuple, order: str, axis_order: tuple | None = None) -> np.ndarray:
    _check_size(shape, dtype, data)
    array = np.frombuffer(bytearray(data), dtype.dtype)
    if order == "K" and axis_order is not None:
        return array.reshape(shape).transpose(axis_order)
    return array.reshape(shape, order=order)  # type: ignore[call-overload]


def _scalar(dtype: DType, data: bytes | str) -> np.generic:
    _check_size((), dtype, data := _bytes(data))
    return np.frombuffer(data, dtype.dtype)[0]


def _check_size(shape: tuple, dtype: DType, data: bytes) -> None:
    sizes = [size for size in shape if type(size) is int and size >= 0]
    if type(dtype) is not DType or len(sizes) != len(shape) or math.prod(sizes) * dtype.dtype.itemsize != len(data):
        raise pickle.UnpicklingError(f"it has an array whose shape {shape!r:.80} is not that of its {len(data)} bytes")


def _bytes(data: bytes | str) -> bytes:
    """Python 2 wrote text, and so does Python 3 for Python 2."""
    return data.encode("latin1") if isinstance(data, str) else bytes(data)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
    return text.encode(encoding)


def _no_bytes() -> bytes:
    return b""


# All that arrays by name need, by exact name (a whole module allowed is a module of gadgets), and what it becomes here.
STAND_INS: dict[str, Any] = {
    "numpy.ndarray": Array,
    "numpy.dtype": DType,
    "builtins.bytes": _no_bytes,  # how Python 3 writes empty bytes for Python 2
    "__builtin__.bytes": _no_bytes,
}
for _core in ("numpy.core", "numpy._core"):  # numpy 1 writes the one, numpy 2 the other
    STAND_INS[f"{_core}.multiarray._reconstruct"] = Array
    STAND_INS[f"{_core}.multiarray.scalar"] = _scalar
    STAND_INS[f"{_core}.numeric._frombuffer"] = _from_buffer
_ALLOWED = {**STAND_INS, "collections.OrderedDict": OrderedDict, "_codecs.encode": _encode}


class _File:
    """A file from which no more can be asked than it has, as memory is set aside for what is asked."""

    def __init__(self, file: BinaryIO):
        self._file, self.readline = file, file.readline
        self._size = file.seek(0, SEEK_END)
        file.seek(0)

    def read(self, size: int) -> bytes:
        if size > self._size:
            raise pickle.UnpicklingError(f"it claims to have {size} bytes where the file has {self._size}")
        return self._file.read(size)


# The pure Python one: the C one resolves extension codes past find_class.
class _Unpickler(pickle._Unpickler):
    stack: list
    append: Callable[[object], None]
    read: Callable[[int], bytes]

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which weights do not need") from None

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError("it uses pickle's extension registry")

    def persistent_load(self, pid: Any) -> None:
        raise pickle.UnpicklingError("it refers to things outside the file")

    def _build(self) -> None:
        """Pickle's own would set the attributes of anything, the functions above among them."""
        state = self.stack.pop()
        if type(self.stack[-1]) in (Array, DType):
            self.stack[-1].__setstate__(state)
        elif type(self.stack[-1]) is not OrderedDict:  # whose attributes, as PyTorch's _metadata, are let go
            raise pickle.UnpicklingError(f"it sets the state of a {type(self.stack[-1]).__name__}")

    def _bytearray(self) -> None:
        """Pickle's own would set the memory aside before it reads."""
        self.append(bytearray(self.read(*unpack("<Q", self.read(8)))))

    dispatch: ClassVar[dict] = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: _build, pickle.BYTEARRAY8[0]: _bytearray}


def load_pickle(path: str) -> dict:
    """A pickled dict, with arrays of numbers or text, and what Python writes without naming a function, in it.

    Raises:
        GNDetError: the file asks for anything else, or is no pickle of a dict.
        OSError: it cannot be opened.
    """
    try:
        with open(path, "rb") as file:
            data = _Unpickler(_File(file), encoding="latin1").load()
    except OSError:
        raise
    except Exception as error:  # there is no end to what pickle raises on bytes that are none
        said = str(error) if isinstance(error, pickle.UnpicklingError) else ""
        reason = one_line(said or f"it is damaged ({error!r})")
        raise GNDetError(f"{path} was not read, because it is not a plain pickle of weights: {reason}.") from None
    if not isinstance(data, dict):
        raise GNDetError(f"{path} holds a {type(data).__name__} and not weights by name.")
    return data


def one_line(text: str) -> str:
    """Text from a file, fit to be said: without line breaks and codes for the terminal, and not too long."""
    return "".join(character if character.isprintable() else " " for character in text[:300])
