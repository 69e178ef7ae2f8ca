"""Pickles of features: every honest array is read as it is, everything else refused before it can run."""

from __future__ import annotations

import os
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longvlm.errors import LongVLMError
from longvlm.index.feature_pickles import read_pickled_array

FEATURES = np.random.RandomState(0).standard_normal((6, 4)).astype(np.float16)


def write(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "array",
    [
        FEATURES,
        FEATURES.astype(np.float64),
        np.asfortranarray(FEATURES),
        FEATURES.astype(">f4"),
        FEATURES[:, 1::2],
        np.arange(5, dtype=np.uint8),
    ],
    ids=["half", "double", "fortran", "big-endian", "strided", "bytes"],
)
def test_reads_what_numpy_writes(tmp_path: Path, array: np.ndarray, protocol: int) -> None:
    read = read_pickled_array(write(tmp_path / "v.pkl", array, protocol))
    assert read.dtype == array.dtype.newbyteorder("=") and read.shape == array.shape
    assert np.array_equal(read, array)


@pytest.mark.parametrize("protocol", [2, 5])
def test_reads_what_either_generation_of_numpy_writes(tmp_path: Path, protocol: int) -> None:
    """Between them, the names of two modules differ, and nothing else."""
    names = (b"numpy._core.", b"numpy.core.") if protocol == 2 else (b"numpy._core.numeric", b"numpy.core.numeric")
    written = pickle.dumps(FEATURES, protocol=protocol)
    other = written.replace(*names) if names[0] in written else written.replace(*reversed(names))
    if protocol == 5:  # the name's length stands before it, and the frame's before that
        frameless = b"".join([other[:2], other[11:]]) if other[2:3] == b"\x95" else other
        new, old = (names[0], names[1]) if names[0] in other else (names[1], names[0])
        other = frameless.replace(bytes([len(old)]) + new, bytes([len(new)]) + new)
    assert other != written
    (tmp_path / "v.pkl").write_bytes(other)
    assert np.array_equal(read_pickled_array(tmp_path / "v.pkl"), FEATURES)


class Malicious:
    """Leaves a file behind where it is unpickled by anything that runs what a pickle says."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call


@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: [FEATURES, evil]], ids=["bare", "beside an array"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_is_refused_and_runs_nothing(
    tmp_path: Path, protocol: int, wrap: Callable[[Malicious], Any]
) -> None:
    path, trace = tmp_path / "v.pkl", tmp_path / "trace"
    write(path, wrap(Malicious(os.mkdir, str(trace))), protocol)
    with pytest.raises(LongVLMError, match=r"v\.pkl is refused.*mkdir.*Nothing in it was run") as error:
        read_pickled_array(path)
    assert not trace.exists()
    assert "\n" not in str(error.value)
    pickle.loads(path.read_bytes())
    assert trace.exists(), "the pickle is malicious indeed"


class TestRefusal:
    @pytest.mark.parametrize(
        "value",
        [
            None,
            [1.0, 2.0],
            {"features": FEATURES},
            b"bytes",
            np.array([{"a": 1}], dtype=object),
            np.array(["text"]),
            np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f4")]),
            np.array([True]),
            np.array([1j]),
            np.array(["2020-01-01"], dtype="M8[D]"),
            np.float16(1.0),
            np.ma.masked_array([1.0], [True]),
            np.dtype("f4"),
            np.ndarray,
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_everything_but_a_plain_numeric_array(self, tmp_path: Path, value: Any) -> None:
        with pytest.raises(LongVLMError, match=r"v\.pkl is refused"):
            read_pickled_array(write(tmp_path / "v.pkl", value))

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"no pickle",
            pickle.dumps(FEATURES)[:60],
            b"cnumpy\ncore.multiarray._reconstruct\n.",
            b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
            b"cnumpy\ndtype\n}(S'__init__'\nNsb.",
            b"Vpersistent\nQ.",
            b"\x80\x02\x82\x01.",
        ],
        ids=["empty", "text", "cut off", "dotted", "attribute", "built upon a type", "persistent", "extension"],
    )
    def test_damage_and_tricks(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "v.pkl").write_bytes(content)
        with pytest.raises(LongVLMError, match=r"v\.pkl is refused"):
            read_pickled_array(tmp_path / "v.pkl")

    def test_a_shape_that_its_bytes_do_not_fill(self, tmp_path: Path) -> None:
        """Nor is memory taken for what a shape claims."""
        written = pickle.dumps(FEATURES, protocol=2)
        claimed = written.replace(b"K\x06K\x04\x86", b"J\xff\xff\xff\x7fK\x04\x86")
        assert claimed != written
        pickletools.dis(claimed, out=(tmp_path / "dis").open("w"))
        (tmp_path / "v.pkl").write_bytes(claimed)
        with pytest.raises(LongVLMError, match="48 bytes for an array of shape"):
            read_pickled_array(tmp_path / "v.pkl")

    def test_what_python_2_wrote(self, tmp_path: Path) -> None:
        """Its first protocol has the bytes as a text with escapes."""
        array = np.array([[1.0, -2.0]], dtype="<f2")
        content = repr(array.tobytes())[1:].encode()
        dtype = b"cnumpy\ndtype\n(S'f2'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
        start = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I1\nI2\nt"
        (tmp_path / "v.pkl").write_bytes(start + dtype + b"I00\nS" + content + b"\ntb.")
        assert b"\\xc0" in content
        assert np.array_equal(read_pickled_array(tmp_path / "v.pkl"), array)

    def test_a_note_of_a_huge_number_takes_no_memory(self, tmp_path: Path) -> None:
        """In an array, as C has it, this would be 64 GB, all of them written to."""
        written = pickle.dumps(FEATURES, protocol=2)
        noted = written.replace(b"q\x00", b"r\xff\xff\xff\xff", 1)
        assert noted != written
        (tmp_path / "v.pkl").write_bytes(noted)
        assert np.array_equal(read_pickled_array(tmp_path / "v.pkl"), FEATURES)

    def test_bytes_that_are_announced_and_not_there_take_no_memory(self, tmp_path: Path) -> None:
        (tmp_path / "v.pkl").write_bytes(b"\x80\x05\x96" + (10**15).to_bytes(8, "little") + b".")
        with pytest.raises(LongVLMError, match="is refused"):
            read_pickled_array(tmp_path / "v.pkl")

    def test_what_refers_to_itself_again_and_again_is_not_shown(self, tmp_path: Path) -> None:
        """Forty lists, each of which holds the one before twice."""
        nested = b"]" + b"".join(b"q%c](h%ch%ce" % (level, level, level) for level in range(40))
        (tmp_path / "v.pkl").write_bytes(
            b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R(K\x01K\x00\x85cnumpy\ndtype\n("
            + nested
            + b"tR\x89U\x00tb."
        )
        with pytest.raises(LongVLMError, match=r"of type no text \(list\)"):
            read_pickled_array(tmp_path / "v.pkl")

    def test_names_cannot_write_to_the_terminal(self, tmp_path: Path) -> None:
        (tmp_path / "v.pkl").write_bytes(b"c\x1b[31mos\nsystem\n.")
        with pytest.raises(LongVLMError) as error:
            read_pickled_array(tmp_path / "v.pkl")
        assert "\x1b" not in str(error.value)

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(LongVLMError, match="Can't read"):
            read_pickled_array(tmp_path / "none.pkl")
