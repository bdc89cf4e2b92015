"""Unpickle dicts of arrays without running code: only exact names of numpy's array types are allowed."""

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
    """Replaces ``numpy.dtype``, for numbers and text only.

    An object array could hold any object of the pickle.
    """

    def __init__(self, code: str, *_: object):
        if not isinstance(code, str) or not _NUMBER_OR_TEXT.fullmatch(code):
            raise pickle.UnpicklingError(f"it has an array of type {code!r} instead of numbers or text")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take only the byte order from numpy's state.

        The rest could change the item size or turn values into pointers.
        """
        if state[1] not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError(f"it has an array with the unknown byte order {state[1]!r}")
        self.dtype = self.dtype.newbyteorder(state[1])


class Array(np.ndarray):
    """Replaces ``numpy.ndarray``. The pickle must contain exactly the bytes that the shape needs."""

    def __new__(cls, *_: object) -> "Array":
        """Return an empty array, which ``__setstate__`` fills."""
        return super().__new__(cls, 0, np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        _check_size(shape, dtype, data := _to_bytes(data))
        super().__setstate__((1, shape, dtype.dtype, bool(fortran), data))  # type: ignore[arg-type]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as a plain numpy array, so that files do not depend on gn_det."""
        return self.view(np.ndarray).__reduce_ex__(protocol)


def _from_buffer(
    data: bytes, dtype: DType, shape: tuple[int, ...], order: str, axis_order: tuple[int, ...] | None = None
) -> np.ndarray:
    _check_size(shape, dtype, data)
    array = np.frombuffer(bytearray(data), dtype.dtype)
    if order == "K" and axis_order is not None:
        return array.reshape(shape).transpose(axis_order)
    reshaped: np.ndarray = array.reshape(shape, order=order)  # type: ignore[call-overload]  # the pickle gives any text
    return reshaped


def _scalar(dtype: DType, data: bytes | str) -> np.generic:
    _check_size((), dtype, data := _to_bytes(data))
    scalar: np.generic = np.frombuffer(data, dtype.dtype)[0]
    return scalar


def _check_size(shape: tuple[int, ...], dtype: DType, data: bytes) -> None:
    sizes = [size for size in shape if type(size) is int and size >= 0]
    if type(dtype) is not DType or len(sizes) != len(shape) or math.prod(sizes) * dtype.dtype.itemsize != len(data):
        raise pickle.UnpicklingError(f"it has an array whose shape {shape!r:.80} does not match its {len(data)} bytes")


def _to_bytes(data: bytes | str) -> bytes:
    """Return bytes. In a pickle of Python 2 they are a str, which the unpickler has decoded as latin1."""
    return data.encode("latin1") if isinstance(data, str) else bytes(data)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
    return text.encode(encoding)


def _no_bytes() -> bytes:
    return b""


# Every global that a pickle of arrays needs, and its replacement. Names are exact: allowing whole
# modules would give a hostile pickle functions to call.
STAND_INS: dict[str, Any] = {
    "numpy.ndarray": Array,
    "numpy.dtype": DType,
    "builtins.bytes": _no_bytes,  # how Python 3 writes empty bytes with protocol 2
    "__builtin__.bytes": _no_bytes,
}
for _core in ("numpy.core", "numpy._core"):  # in files of numpy 1 and numpy 2
    STAND_INS[f"{_core}.multiarray._reconstruct"] = Array
    STAND_INS[f"{_core}.multiarray.scalar"] = _scalar
    STAND_INS[f"{_core}.numeric._frombuffer"] = _from_buffer
_ALLOWED = {**STAND_INS, "collections.OrderedDict": OrderedDict, "_codecs.encode": _encode}


class _BoundedFile:
    """A file that refuses to read more bytes than it has.

    The limit is needed because the unpickler allocates memory for the number of bytes that a pickle
    asks for.
    """

    def __init__(self, file: BinaryIO):
        self._file, self.readline = file, file.readline
        self._size = file.seek(0, SEEK_END)
        file.seek(0)

    def read(self, size: int) -> bytes:
        if size > self._size:
            raise pickle.UnpicklingError(f"it claims to contain {size} bytes, but the file has {self._size}")
        return self._file.read(size)


# The pure Python unpickler, because the one in C resolves extension codes without calling find_class.
class _Unpickler(pickle._Unpickler):
    stack: list[Any]
    append: Callable[[object], None]
    read: Callable[[int], bytes]

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which weights do not need") from None

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError("it uses pickle's extension registry")

    def persistent_load(self, pid: Any) -> None:
        raise pickle.UnpicklingError("it refers to objects outside the file")

    def _build(self) -> None:
        """Set the state of arrays and dtypes only.

        Pickle's own version sets attributes of any object, even functions.
        """
        state = self.stack.pop()
        if type(self.stack[-1]) in (Array, DType):
            self.stack[-1].__setstate__(state)
        elif type(self.stack[-1]) is not OrderedDict:  # its attributes, such as PyTorch's _metadata, are ignored
            raise pickle.UnpicklingError(f"it sets the state of a {type(self.stack[-1]).__name__}")

    def _bytearray(self) -> None:
        """Read a bytearray through the bounded file.

        Pickle's own version allocates the memory before it reads.
        """
        self.append(bytearray(self.read(*unpack("<Q", self.read(8)))))

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: _build,
        pickle.BYTEARRAY8[0]: _bytearray,
    }


def load_pickle(path: str) -> dict[Any, Any]:
    """Load a pickled dict that contains only arrays of numbers or text, and Python's built-in types.

    Raises:
        GNDetError: the pickle asks for any other type or function, or is not a dict.
        OSError: the file cannot be opened.
    """
    try:
        with open(path, "rb") as file:
            data = _Unpickler(_BoundedFile(file), encoding="latin1").load()
    except OSError:
        raise
    except Exception as error:  # pickle can raise any exception for bytes that are not a pickle
        message = str(error) if isinstance(error, pickle.UnpicklingError) else ""
        reason = one_line(message or f"it is damaged ({error!r})")
        raise GNDetError(f"{path} was not read, because it is not a plain pickle of weights: {reason}.") from None
    if not isinstance(data, dict):
        raise GNDetError(f"{path} holds a {type(data).__name__} instead of a dict of weights.")
    return data


def one_line(text: str) -> str:
    """Return the first 300 characters of a text, with spaces instead of line breaks and control codes."""
    return "".join(character if character.isprintable() else " " for character in text[:300])
