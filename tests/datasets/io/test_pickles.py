import contextlib
import io
import os
import pickle
import pickletools
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ris_pipeline.datasets.io import files
from ris_pipeline.datasets.io.pickles import load_plain_pickle
from ris_pipeline.errors import RisError

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.tuples(inner, inner)
        | st.sets(st.integers())
    ),
    max_leaves=20,
)


class Bomb:
    """Runs a command when unpickled by an ordinary loader."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def save(folder: Path, data: bytes) -> Path:
    path = folder / "refs.p"
    path.write_bytes(data)
    return path


@settings(max_examples=60, deadline=None)
@given(value=PLAIN, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_values_come_back(value, protocol, tmp_path_factory):
    path = save(tmp_path_factory.mktemp("p"), pickle.dumps(value, protocol))
    assert load_plain_pickle(path) == value


@settings(max_examples=40, deadline=None)
@given(
    protocol=st.integers(0, pickle.HIGHEST_PROTOCOL),
    depth=st.integers(0, 4),
    which=st.sampled_from(["system", "eval", "exec", "open", "import", "getattr"]),
)
def test_planted_calls_are_refused_and_do_not_run(protocol, depth, which, tmp_path_factory):
    folder = tmp_path_factory.mktemp("p")
    trace = folder / "trace"
    write = f"open({str(trace)!r}, 'w').close()"
    value = {
        "system": Bomb(os.system, f"touch {trace}"),
        "eval": Bomb(eval, write),
        "exec": Bomb(exec, write),
        "open": Bomb(io.open, str(trace), "w"),
        "import": Bomb(__import__, "os"),
        "getattr": Bomb(getattr, "text", "upper"),
    }[which]
    for _ in range(depth):
        value = [{"sentences": (value,)}]
    with pytest.raises(RisError, match=r"it names \w+\.\w+, which plain annotations never do"):
        load_plain_pickle(save(folder, pickle.dumps(value, protocol)))
    assert not trace.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"cposix\nsystem\n(S'true'\ntR.",  # GLOBAL, REDUCE
        b"(S'true'\nios\nsystem\n.",  # INST
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",  # STACK_GLOBAL
        b"\x80\x04\x8c\x08builtins\x8c\x0cset.__init__\x93.",  # a path into an admitted class
        b"c__builtin__\nbytearray\n(I1000000000000\ntR.",
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"\x80\x02ccopy_reg\n_reconstructor\n(c__builtin__\nset\nc__builtin__\nobject\nNtR.",
    ],
)
def test_every_opcode_that_names_a_class_is_refused(data, tmp_path):
    with pytest.raises(RisError, match="nothing of it was executed"):
        load_plain_pickle(save(tmp_path, data))


@pytest.mark.parametrize("value", [np.float64(1), np.zeros(2), OrderedDict(a=1), Path("a"), len, int])
def test_anything_but_plain_values_is_refused(value, tmp_path):
    with pytest.raises(RisError, match=r"never do|save it again with plain"):
        load_plain_pickle(save(tmp_path, pickle.dumps(value, 2)))


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=60), cut=st.integers(0, 40))
def test_broken_files_raise_one_kind_of_error(data, cut, tmp_path_factory):
    folder = tmp_path_factory.mktemp("p")
    whole = pickle.dumps([{"ref_id": 1, "sentences": [{"sent": "a"}]}], 2)
    for content in (whole[:cut] + data, data):
        with contextlib.suppress(RisError):  # any other error fails the test
            load_plain_pickle(save(folder, content))


def test_bytes_of_a_given_length_are_not_made(tmp_path):
    with pytest.raises(RisError, match="not a readable pickle"):
        load_plain_pickle(save(tmp_path, b"c__builtin__\nbytes\n(I1000000000000\ntR."))


def test_what_is_set_on_an_admitted_function_does_not_stay(tmp_path):
    # _codecs.encode, then BUILD with an attribute: legal, harmless, and gone with the next call.
    save(tmp_path, b"\x80\x02c_codecs\nencode\nN}U\x01xK\x01s\x86b.")
    function = load_plain_pickle(tmp_path / "refs.p")
    assert function.x == 1
    again = load_plain_pickle(save(tmp_path, b"\x80\x02c_codecs\nencode\n."))
    assert not hasattr(again, "x")


def test_python_2_strings(tmp_path):
    # {'query': 'caf\xc3\xa9'} as Python 2 writes it: SHORT_BINSTRING, UTF-8 bytes.
    utf8 = b"\x80\x02}U\x05queryU\x05caf\xc3\xa9s."
    assert load_plain_pickle(save(tmp_path, utf8)) == {"query": "café"}
    latin1 = b"\x80\x02}U\x05queryU\x04caf\xe9s."
    assert load_plain_pickle(save(tmp_path, latin1)) == {"query": "café"}
    protocol0 = b"(lp0\n(dp1\nS'split'\np2\nS'testA'\np3\nsa."
    assert load_plain_pickle(save(tmp_path, protocol0)) == [{"split": "testA"}]


def test_python_2_sets(tmp_path):
    data = b"\x80\x02c__builtin__\nset\n](K\x01K\x02e\x85R."
    assert "GLOBAL" in {opcode.name for opcode, _, _ in pickletools.genops(data)}
    assert load_plain_pickle(save(tmp_path, data)) == {1, 2}


def test_too_large_a_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_BYTES", 2**20)
    path = save(tmp_path, pickle.dumps("a" * 2**20))
    with pytest.raises(RisError, match="larger than 1 MiB"):
        load_plain_pickle(path)


def test_a_length_beyond_the_end_is_refused(tmp_path):
    data = b"\x80\x02X" + struct.pack("<I", 2**31) + b"abc."
    with pytest.raises(RisError, match="not a readable pickle"):
        load_plain_pickle(save(tmp_path, data))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no bound on memory here")
def test_a_table_larger_than_memory_is_refused(tmp_path):
    # An empty list, put at place 2^31 of the memo, which Python would fill up to there: 32 GB.
    line = r"not a readable pickle \(MemoryError"
    with pytest.raises(RisError, match=line):
        load_plain_pickle(save(tmp_path, b"\x80\x02]r\x00\x00\x00\x80."))
    assert load_plain_pickle(save(tmp_path, pickle.dumps([1]))) == [1]


def test_missing_file(tmp_path):
    with pytest.raises(RisError, match=r"refs\.p cannot be read: No such file"):
        load_plain_pickle(tmp_path / "refs.p")
