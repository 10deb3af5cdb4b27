"""Masks of one's own: what is read, what a config keeps of it, and what is refused."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import spec
from positionbias.config.build import build
from positionbias.config.resolve import config_hash, resolve
from positionbias.config.schema import to_dict
from positionbias.masks.from_file import LONGEST, FromFile
from positionbias.tokens import sequential

RING = np.roll(np.eye(5, dtype=bool), 1, axis=1) | np.eye(5, dtype=bool)


def dense(mask, rows, columns):
    return mask.dense(sequential(rows), sequential(columns))


def refused(path):
    with pytest.raises(spec.ConfigError) as caught:
        spec.build("masks", f"from_file({str(path)!r})", "mask")
    told = str(caught.value)
    assert told.count(". ") == 0
    assert "\n" not in told
    return told


@pytest.mark.parametrize("kind", [bool, np.int8, np.uint8, np.int64])
def test_an_array_is_read(tmp_path, kind):
    np.save(tmp_path / "ring.npy", RING.astype(kind))
    np.testing.assert_array_equal(dense(FromFile(str(tmp_path / "ring.npy")), 5, 5), RING)


@pytest.mark.parametrize(
    "text", ["101\n010\n111\n", "1 0 1\n0 1 0\n1 1 1", "1,0,1\r\n0, 1, 0\r\n\r\n1,\t1,1\r\n", "\n101\n010\n1 1 1\n\n"]
)
def test_text_is_read(tmp_path, text):
    (tmp_path / "own.txt").write_bytes(text.encode())
    found = dense(FromFile(str(tmp_path / "own.txt")), 3, 3)
    np.testing.assert_array_equal(found, [[1, 0, 1], [0, 1, 0], [1, 1, 1]])


def test_a_rectangle_serves_cross_attention_and_counts_each_side_from_its_first_token(tmp_path):
    (tmp_path / "own.txt").write_text("1100\n0011\n")
    mask = FromFile(str(tmp_path / "own.txt"))
    tokens = sequential(6)
    np.testing.assert_array_equal(mask.dense(tokens.cut(4, 6), tokens.cut(0, 4)), [[1, 1, 0, 0], [0, 0, 1, 1]])
    traced = jax.jit(mask.dense)(*(jax.tree.map(jnp.asarray, t) for t in (tokens.cut(4, 6), tokens.cut(0, 4))))
    np.testing.assert_array_equal(traced, [[1, 1, 0, 0], [0, 0, 1, 1]])


def test_shorter_sequences_have_the_corner_and_longer_ones_are_refused(tmp_path):
    np.save(tmp_path / "ring.npy", RING)
    mask = FromFile(str(tmp_path / "ring.npy"))
    np.testing.assert_array_equal(dense(mask, 3, 4), RING[:3, :4])
    for rows, columns in [(6, 5), (5, 6)]:
        with pytest.raises(spec.ConfigError) as caught:
            dense(~mask, rows, columns)
        assert str(caught.value) == (
            f"from_file has a matrix of 5 x 5, but {rows} queries look at {columns} keys;"
            " allowed: a matrix of at least as many rows and columns."
        )


def test_a_matrix_too_small_for_a_task_is_refused_when_the_model_is_built(tmp_path):
    np.save(tmp_path / "ring.npy", RING)
    mask = f"from_file({str(tmp_path / 'ring.npy')!r})"
    config = resolve({"name": "own", "task": "associative_recall(pairs=4)", "model": {"mask": mask}})
    with pytest.raises(
        spec.ConfigError, match=r"^model\.mask: in layer 0, from_file has a matrix of 5 x 5, but 16 queries look at 16"
    ):
        build(config)


def test_what_was_read_is_in_the_text_and_needs_no_file_again(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("10\n11\n")
    built = spec.build("masks", f"causal & from_file({str(path)!r})", "mask")
    text = "causal & from_file(path='own.txt', matrix='2x2:b0')"
    assert spec.full(built) == spec.canonical(built) == text
    path.write_text("01\n11\n")
    assert spec.build("masks", text, "mask") == built, "the matrix counts, not the file"
    path.unlink()
    assert spec.build("masks", text, "mask") == built
    moved = spec.build("masks", "from_file('elsewhere/own.txt', '2x2:b0')", "mask")
    assert moved == built.right
    assert (
        spec.canonical(spec.build("masks", "from_file(None, '2x2:b0')", "mask"))
        == "from_file(path=None, matrix='2x2:b0')"
    )


def test_the_hash_goes_by_content_and_name_and_not_by_folder(tmp_path):
    def resolved(folder, name, text):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(text)
        mask = f"from_file({str(tmp_path / folder / name)!r})"
        return resolve({"name": "own", "task": "associative_recall", "model": {"mask": mask}})

    first = resolved("a", "own.txt", "10\n11")
    assert config_hash(resolved("b", "own.txt", "1 0\n1 1\n")) == config_hash(first)
    assert config_hash(resolved("a", "own.txt", "11\n11")) != config_hash(first)
    assert str(tmp_path) not in str(to_dict(first))
    again = resolve(to_dict(first))
    assert config_hash(again) == config_hash(first)


def test_the_largest_matrix_makes_a_text_that_reads_back(tmp_path):
    table = np.random.default_rng(0).random((LONGEST, LONGEST)) < 0.5
    np.save(tmp_path / "large.npy", table)
    built = FromFile(str(tmp_path / "large.npy"))
    assert len(built.matrix) == len("2048x2048:") + LONGEST**2 // 4
    again = spec.build("masks", spec.full(built), "mask")
    assert again == built
    q = sequential(LONGEST)
    np.testing.assert_array_equal(again.bind(q, q).allowed(q.cut(2040, 2048).rows(), q.columns()), table[2040:])


KINDS = (
    "allowed: .npy with a matrix of booleans or of 0 and 1, or text with a row of 0 and 1 a line, up to 2048 a side."
)


def write(path, value):
    if isinstance(value, bytes):
        path.write_bytes(value)
    else:
        np.save(path, value, allow_pickle=True)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("a.npy", np.eye(3), "is not allowed"),
        ("a.npy", np.array([[1, None]], dtype=object), "is not allowed"),
        ("a.npy", b"", "is not allowed"),
        ("a.npy", b"\x93NUMPY\x01\x00", "is not allowed"),
        ("a.npy", b"10\n01\n", "is not allowed"),
        ("a.npy", np.arange(4).reshape(2, 2), "holds other numbers than 0 and 1"),
        ("a.npy", -np.eye(2, dtype=np.int8), "holds other numbers than 0 and 1"),
        ("a.npy", np.ones(4, bool), "holds an array of shape [4]"),
        ("a.npy", np.ones((2, 2, 2), bool), "holds an array of shape [2, 2, 2]"),
        ("a.npy", np.ones((1, 2049), bool), "holds an array of shape [1, 2049]"),
        ("a.txt", b"1" * 2049, "holds an array of shape [1, 2049]"),
        ("a.txt", b"", "is not allowed"),
        ("a.txt", b"\n \n", "is not allowed"),
        ("a.txt", b"10\n1\n", "is not allowed"),
        ("a.txt", b"101\n1\n", "is not allowed"),
        ("a.txt", b"10\n12\n", "is not allowed"),
        ("a.txt", b"1.0 0\n0 1\n", "is not allowed"),
        ("a.txt", "1\u0661".encode(), "is not allowed"),
        ("a.txt", b"\xff\xfe", "is not allowed"),
    ],
)
def test_what_is_no_mask_is_refused(tmp_path, name, value, why):
    write(tmp_path / name, value)
    assert refused(tmp_path / name) == f"mask: path = {str(tmp_path / name)!r} {why}; {KINDS}"


def test_a_header_that_claims_more_than_the_file_holds_is_refused_before_anything_is_made(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((2, 2), bool))
    claimed = (tmp_path / "a.npy").read_bytes().replace(b"(2, 2), }" + b" " * 12, b"(2999999, 999999), }  ")
    assert b"2999999" in claimed
    (tmp_path / "a.npy").write_bytes(claimed)
    assert refused(tmp_path / "a.npy").startswith(f"mask: path = {str(tmp_path / 'a.npy')!r} is not allowed; ")


def test_a_file_that_is_far_too_large_is_not_read(tmp_path):
    (tmp_path / "a.txt").touch()
    os.truncate(tmp_path / "a.txt", 2**40)  # takes no space on the disk
    assert refused(tmp_path / "a.txt").endswith(f"is not allowed; {KINDS}")


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '|b1', 'fortran_order': False, 'shape': (1180591620717411303424, 2), }",
        b"{'descr': '|b1', 'fortran_order': False, 'shape': (True, 4), }",
        b"{[1]: 2}",
        b"(" * 5000,
        b"\xff\xfe{",
    ],
)
def test_broken_headers_are_refused(tmp_path, header):
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(8))
    assert refused(tmp_path / "a.npy").endswith(f"is not allowed; {KINDS}")


def test_pipes_and_devices_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        assert refused(path).endswith(f"is no file that ends; {KINDS}")


def test_what_cannot_be_read_is_refused(tmp_path):
    assert refused(tmp_path / "none.txt").endswith(f"none.txt' cannot be read (No such file or directory); {KINDS}")
    assert "cannot be read (Is a directory)" in refused(tmp_path)
    assert refused("a\0b").endswith(f"is not allowed; {KINDS}")


@pytest.mark.parametrize(
    "matrix",
    [
        "",
        "2x2",
        "2x2:",
        "2x2:b",
        "2x2:bf",
        "2x2:b000",
        "2x2:B0",
        "0x2:00",
        "02x2:b0",
        "2x-2:b0",
        "2049x1:" + "00" * 257,
    ],
)
def test_a_text_that_no_config_kept_is_refused(matrix):
    with pytest.raises(spec.ConfigError, match=r"^mask: matrix = '.* is not allowed; allowed: what a config keeps"):
        spec.build("masks", f"from_file(None, {matrix!r})", "mask")


def test_a_file_or_its_content_must_be_given():
    with pytest.raises(spec.ConfigError, match=r"^mask: from_file needs the argument 'path'"):
        spec.build("masks", "from_file", "mask")
    with pytest.raises(spec.ConfigError, match=r"^mask: path = None is not allowed; allowed: the path of a file"):
        spec.build("masks", "from_file(None)", "mask")
