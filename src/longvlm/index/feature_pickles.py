"""Reading a pickled numpy array without running anything that the pickle says.

A pickle is a program. Here it may name only what numpy's own arrays name, and even that is replaced by inert
stand-ins which write down what they are given; the array is then built from those notes.
"""

from __future__ import annotations

import math
import pickle
import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from longvlm.errors import LongVLMError, one_line

_NUMERIC = re.compile(r"[fiu][1248]")


class _Refused(Exception):
    """The pickle holds something else than one plain numeric array."""


class _Inert:
    """What a pickle may call: it keeps the arguments and the state, and does nothing with them."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _ArrayType(_Inert):
    """Stands for numpy.ndarray, which arrays name as their type."""


class _Dtype(_Inert):
    """numpy.dtype: arguments (code, align, copy); state (version, byte order, …)."""


class _FilledArray(_Inert):
    """numpy's _reconstruct: an empty array, whose state is (version, shape, dtype, is_fortran, data)."""


class _BufferArray(_Inert):
    """numpy's _frombuffer: arguments (data, dtype, shape, order), and in numpy 2.3 and later an order of axes."""


class _Latin1(_Inert):
    """_codecs.encode, by which protocols before 3 write bytes: arguments (text, "latin1")."""


# The modules' names are those of numpy 1.x and of 2.x.
_STAND_INS: dict[tuple[str, str], type[_Inert]] = {
    ("numpy", "ndarray"): _ArrayType,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _FilledArray,
    ("numpy._core.multiarray", "_reconstruct"): _FilledArray,
    ("numpy.core.numeric", "_frombuffer"): _BufferArray,
    ("numpy._core.numeric", "_frombuffer"): _BufferArray,
    ("_codecs", "encode"): _Latin1,
}


def _load_bytearray8(unpickler: Any) -> None:
    """As many bytes as there are; pickle itself takes the memory of as many as are announced."""
    announced = int.from_bytes(unpickler.read(8), "little")
    unpickler.append(bytearray(unpickler.read(announced)))


# The one in C keeps what a pickle notes for later in an array, of which a note of a huge number would take all memory.
class _Unpickler(pickle._Unpickler):
    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BYTEARRAY8[0]: _load_bytearray8}

    def find_class(self, module: str, name: str) -> type[_Inert]:
        stand_in = _STAND_INS.get((module, name))
        if stand_in is None:
            asked = f"{module}.{name}"
            raise _Refused(f"it asks for {asked!r}")
        return stand_in


def read_pickled_array(path: Path) -> np.ndarray:
    """The plain numeric array that a pickle file holds, written by numpy 1.x or 2.x in any protocol.

    Raises LongVLMError, naming the file and having run nothing, for anything else.
    """
    try:
        with path.open("rb") as file:
            # Python 2 wrote bytes as text of one byte a character
            built = _Unpickler(file, encoding="latin1").load()
        return _build_array(built)
    except OSError as error:
        raise LongVLMError(f"Can't read {path}: {error.strerror or error}.") from error
    except Exception as error:  # damaged pickles fail in many ways, and all of them mean the same
        reason = one_line(error)
        raise LongVLMError(
            f"{path} is refused: it is not a pickle of one plain numeric numpy array ({reason}). Nothing in it was "
            "run. Extract the video's features again, or take it and its counterpart out of their folders."
        ) from error


def _build_array(built: Any) -> np.ndarray:
    if isinstance(built, _FilledArray) and built.state is not None:
        _, shape, dtype, is_fortran, data = built.state
        order = "F" if is_fortran else "C"
    elif isinstance(built, _BufferArray):
        data, dtype, shape, order, *axes = built.arguments
        if order not in ("C", "F") or any(axis is not None for axis in axes):
            raise _Refused("its axes are in an order of their own")
    else:
        raise _Refused(f"it holds an object of another kind, {type(built).__name__.strip('_').lower()}")
    if not isinstance(shape, tuple) or not all(type(length) is int and length >= 0 for length in shape):
        raise _Refused("its shape is no tuple of lengths")
    numeric, content = _numeric_dtype(dtype), _bytes(data)
    if len(content) != math.prod(shape) * numeric.itemsize:
        raise _Refused(f"it has {len(content)} bytes for an array of shape {shape} and type {numeric}")
    array = np.frombuffer(content, numeric).reshape(shape, order="F" if order == "F" else "C")
    return array.astype(numeric.newbyteorder("="))


def _numeric_dtype(noted: Any) -> np.dtype:
    if not isinstance(noted, _Dtype) or not noted.arguments:
        raise _Refused("its element type is missing")
    code, state = noted.arguments[0], noted.state
    if not isinstance(code, str) or not _NUMERIC.fullmatch(code):
        raise _Refused(f"its elements are of type {_shown(code)}")
    byte_order = "=" if state is None else state[1]
    if byte_order not in ("<", ">", "=", "|"):
        raise _Refused(f"its byte order is {_shown(byte_order)}")
    return np.dtype(f"{byte_order}{code}")


def _shown(value: Any) -> str:
    """A short text as it is, of anything else only the kind: what refers to itself would never end."""
    return repr(value[:40]) if isinstance(value, str) else f"no text ({type(value).__name__})"


def _bytes(data: Any) -> bytes:
    if isinstance(data, _Latin1):
        text, *codec = data.arguments
        if codec not in (["latin1"], ["latin-1"]):
            raise _Refused("its data are in an unknown encoding")
        return text.encode("latin1")
    if isinstance(data, str):
        return data.encode("latin1")
    if not isinstance(data, bytes | bytearray):
        raise _Refused("it holds Python objects instead of numbers")
    return bytes(data)
