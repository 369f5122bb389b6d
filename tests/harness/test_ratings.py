import bz2
import gzip

import pytest

from harness.errors import UserError
from harness.ratings import read

LINES = [(1, 31, 2.5, 1260759144), (1, 1029, 3.0, 1260759179), (7, 31, 4.5, 1260759182)]
FORMATS = {
    "ratings.csv": ("userId,movieId,rating,timestamp\n", ","),
    "u.data": ("", "\t"),
    "ratings.dat": ("", "::"),
    "plain": ("", " "),
}


def text(name, columns=4):
    header, separator = FORMATS[name]
    return header + "".join(separator.join(map(str, line[:columns])) + "\n" for line in LINES)


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("columns", [3, 4])
@pytest.mark.parametrize("name", FORMATS)
def test_formats_of_movielens(tmp_path, name, columns):
    ratings = read(write(tmp_path, name, text(name, columns)))
    assert ratings.users.tolist() == [1, 1, 7]
    assert ratings.items.tolist() == [31, 1029, 31]
    assert ratings.values.tolist() == [2.5, 3.0, 4.5]


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_compressed(tmp_path, suffix, pack):
    assert len(read(write(tmp_path, "u.data" + suffix, pack(text("u.data").encode())))) == 3


@pytest.mark.parametrize("change", [lambda s: s.replace("\n", "\r\n"), lambda s: "\ufeff" + s, lambda s: s + "\n\n"])
def test_line_ends_marks_and_blank_lines_do_not_matter(tmp_path, change):
    assert read(write(tmp_path, "ratings.csv", change(text("ratings.csv")))).items.tolist() == [31, 1029, 31]


DAMAGED = [
    ("a word", "1,2,3\n1,3,good\n", "line 2: must be user, item and rating as numbers"),
    ("a word in a file with a header", "userId,movieId,rating\n1,2,3\n\n1,x,2\n", "line 4: .* got '1,x,2'"),
    ("a line that is too short", "1 2 3\n4 5\n", "line 2: .* got '4 5'"),
    ("an id with a fraction", "1,2,3\n1.5,3,4\n", "line 2: .* the ids whole"),
    ("nan", "1,2,3\n1,3,nan\n", "line 2: .* got '1,3,nan'"),
    ("infinity", "inf,2,3\n", "line 1: .* got 'inf,2,3'"),
    ("another separator halfway", "1,2,3\n1;3;4\n", "line 2: .* got '1;3;4'"),
    ("LIBSVM text", "1 3:0.5 7:1\n", "line 1: .* got '1 3:0.5 7:1'"),
    ("Netflix's own format", "1:\n1488844,3,2005-09-06\n", "line 1: .* got '1:'"),
    ("a web page", "<html>\n<p>not found</p>\n", "line 1: must be like userId,movieId,rating .* got '<html>'"),
    ("columns in another order", "rating,user,item\n3,1,2\n", "line 1: .* got 'rating,user,item'"),
    ("no lines", "", "holds no ratings"),
    ("nothing but a header", "userId,movieId,rating,timestamp\n", "holds no ratings"),
    ("a pair twice", "1,2,3\n4,2,3\n1,2,5\n", "has two ratings of item 2 by user 1: keep one of them"),
    ("bytes", bytes(range(128, 256)), "cannot be read as text"),
]


@pytest.mark.parametrize(("content", "words"), [case[1:] for case in DAMAGED], ids=[case[0] for case in DAMAGED])
def test_a_damaged_file_is_one_sentence(tmp_path, content, words):
    path = write(tmp_path, "ratings.txt", content)
    with pytest.raises(UserError, match=words) as error:
        read(path)
    message = str(error.value)
    assert message.startswith(f"{path} ") and "\n" not in message


@pytest.mark.parametrize("damage", [lambda packed: packed[:-9], lambda packed: packed[:10] + b"\xff" * 20])
def test_a_damaged_archive_is_one_sentence(tmp_path, damage):
    path = write(tmp_path, "u.data.gz", damage(gzip.compress(text("u.data").encode())))
    with pytest.raises(UserError, match="cannot be read as text"):
        read(path)
