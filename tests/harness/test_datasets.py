import bz2
import gzip
import http.server
import threading
from functools import partial

import pytest
import torch

from harness.datasets import find, read, signs
from harness.errors import UserError

TEXT = b"+1 1:0.5 3:2\n-1 2:1\n+1 4:0.25\n"


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """A computer of its own: current folder, two data folders and a cache, all empty."""
    for name in ("here", "one", "two", "cache"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("TWINCLOCK_DATA", f"{tmp_path / 'one'}:{tmp_path / 'two'}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; /short.txt breaks off."""

    def log_message(self, format, *arguments):
        pass

    def do_GET(self):
        if self.path != "/short.txt":
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", str(len(TEXT) + 100))
        self.end_headers()
        self.wfile.write(TEXT)


@pytest.fixture
def server(places):
    (places / "served").mkdir()
    handler = partial(Handler, directory=str(places / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield places / "served", f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(timeout=10)


@pytest.mark.parametrize("spelling", ["toy.txt", "toy.txt.gz", "toy.txt.bz2"])
@pytest.mark.parametrize("stored", ["toy.txt", "toy.txt.gz", "toy.txt.bz2"])
def test_names_match_with_and_without_compression(places, spelling, stored):
    (places / "two" / stored).write_bytes(b"")
    assert find(spelling, download=False) == places / "two" / stored


def test_places_are_tried_in_order(places):
    order = ["here", "one", "two", "cache/twinclock"]
    (places / "cache/twinclock").mkdir()
    for folder in order:
        (places / folder / "toy").write_bytes(b"")
    for folder in order:
        found = find("toy", download=False)
        assert found == places / folder / "toy"
        found.unlink()


def test_absolute_path_is_taken_as_it_is(places):
    (places / "elsewhere").write_bytes(b"")
    (places / "elsewhere.gz").write_bytes(b"")
    assert find(str(places / "elsewhere.gz"), download=False) == places / "elsewhere.gz"


def test_missing_file_names_every_place_and_the_fix(places):
    with pytest.raises(UserError) as error:
        find("toy.txt", download=True, field="problem.test_path")
    assert str(error.value) == (
        f"problem.test_path='toy.txt' is at none of {places}/here/toy.txt, {places}/one/toy.txt, {places}/two/toy.txt, "
        f"{places}/cache/twinclock/toy.txt (nor there with .gz or .bz2): put it there, or name its folder in "
        "TWINCLOCK_DATA"
    )


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a9a", "a9a"),
        ("w8a.t", "w8a.t"),
        ("rcv1_train.binary", "rcv1_train.binary.bz2"),
        ("real-sim.bz2", "real-sim.bz2"),
    ],
)
def test_well_known_name_is_not_fetched_unasked(name, file):
    page = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/binary/"
    with pytest.raises(UserError) as error:
        find(name, download=False)
    assert str(error.value).endswith(f"or set problem.download=true to fetch {page}{file}")


def test_well_known_name_is_fetched_once(server, places, monkeypatch):
    folder, address = server
    (folder / "rcv1_train.binary.bz2").write_bytes(bz2.compress(TEXT))
    monkeypatch.setattr("harness.datasets._PAGE", address + "/")
    fetched = find("rcv1_train.binary", download=True)
    assert fetched == places / "cache/twinclock/rcv1_train.binary.bz2"
    (folder / "rcv1_train.binary.bz2").unlink()
    assert find("rcv1_train.binary", download=False) == fetched
    assert len(read([fetched])[0][0]) == 3


def test_addresses_that_end_alike_are_kept_apart(server):
    folder, address = server
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "toy.gz").write_bytes(gzip.compress(TEXT if name == "a" else b"+1 1:1\n-1 1:2\n"))
    found = [find(f"{address}/{name}/toy.gz", download=True) for name in ("a", "b")]
    assert [len(read([path])[0][0]) for path in found] == [3, 2]


def test_address_is_not_fetched_unasked(server):
    folder, address = server
    (folder / "toy").write_bytes(TEXT)
    with pytest.raises(UserError, match=f"set problem.download=true to fetch {address}/toy$"):
        find(f"{address}/toy", download=False)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("absent.txt", "404"), ("short.txt", f"broke after {len(TEXT)} of {len(TEXT) + 100} bytes")],
)
def test_failed_download_is_one_sentence_and_leaves_nothing(server, places, name, reason):
    with pytest.raises(UserError) as error:
        find(f"{server[1]}/{name}", download=True)
    message = str(error.value)
    assert reason in message and f"check the network, or put the file at {places}/cache/twinclock/" in message
    assert list((places / "cache/twinclock").iterdir()) == []


def test_no_network(places):
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as closed:
        port = closed.server_port
    with pytest.raises(UserError, match=r"could not be fetched .*refused.*: check the network"):
        find(f"http://127.0.0.1:{port}/toy", download=True)


def write(places, text, name="toy"):
    path = places / name
    path.write_bytes(text)
    return path


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress)])
def test_contents(places, suffix, pack):
    [(rows, labels)] = read([write(places, pack(TEXT), "toy" + suffix)])
    assert labels.tolist() == [1, -1, 1]
    assert rows.indptr.tolist() == [0, 2, 3, 4]
    assert rows.indices.tolist() == [0, 2, 1, 3]
    assert rows.values.tolist() == [0.5, 2, 1, 0.25]
    assert rows.num_features == 4
    assert (rows.indptr.dtype, rows.indices.dtype, labels.dtype) == (torch.int64, torch.int32, torch.float64)


def test_files_read_together_agree_on_features(places):
    train, test = read([write(places, TEXT), write(places, b"1 9:1\n", "test")])
    assert train[0].num_features == test[0].num_features == 9
    # A feature 0 in one file counts both from 0.
    train, test = read([write(places, TEXT), write(places, b"1 0:1\n", "test")])
    assert (train[0].indices.tolist(), test[0].indices.tolist()) == ([1, 3, 2, 4], [0])


def test_real_valued_labels_are_kept(places):
    assert read([write(places, b"0.25 1:1\n-3.5 1:2\n")])[0][1].tolist() == [0.25, -3.5]


@pytest.mark.parametrize("pair", [(0, 1), (-1, 1), (1, 2)])
def test_two_classes_become_signs(pair):
    labels = torch.tensor([pair[1], pair[0], pair[1]], dtype=torch.float64)
    assert signs(labels, "toy").tolist() == [1, -1, 1]


@pytest.mark.parametrize(
    ("classes", "shown"),
    [([1.0], "got 1 (1)"), ([1, 2, 3], "got 3 (1, 2, 3)"), (range(9), "got 9 (0, 1, 2, 3, 4, ...)")],
)
def test_other_numbers_of_classes_are_refused(classes, shown):
    with pytest.raises(UserError) as error:
        signs(torch.tensor(list(classes)), "toy.txt")
    assert str(error.value) == f"toy.txt must hold exactly 2 classes, {shown}: take a binary data set"


DAMAGED = [
    ("words", b"<html>not found</html>\n", "cannot be read as LIBSVM text"),
    ("pair", b"1 1:0.5 2\n", "cannot be read as LIBSVM text"),
    ("negative", b"1 -4:1\n", "cannot be read as LIBSVM text"),
    ("unsorted", b"1 3:1 2:1\n", "cannot be read as LIBSVM text"),
    ("huge", b"1 99999999999999999999999:1\n", "cannot be read as LIBSVM text"),
    ("large", b"1 4294967297:1\n-1 1:1\n", "cannot be read as LIBSVM text"),
    ("signed", b"1 3000000000:1\n-1 1:1\n", "cannot be read as LIBSVM text"),
    ("binary", bytes(range(256)), "cannot be read as LIBSVM text"),
    ("truncated.gz", gzip.compress(TEXT, mtime=0)[:-9], "cannot be read as LIBSVM text"),
    ("damaged.gz", gzip.compress(TEXT, mtime=0)[:10] + b"\xff" * 20, "cannot be read as LIBSVM text"),
    ("plain.gz", TEXT, "cannot be read as LIBSVM text"),
    ("damaged.bz2", bz2.compress(TEXT)[:-5], "cannot be read as LIBSVM text"),
    ("empty", b"", "holds no samples"),
    ("blank", b"\n# a comment\n", "holds no samples"),
    ("featureless", b"1\n-1\n", "holds no features"),
    ("nan", b"1 1:nan\n-1 1:1\n", "holds a value that is nan or infinite"),
    ("infinite", b"inf 1:1\n-1 1:1\n", "holds a value that is nan or infinite"),
]


@pytest.mark.parametrize(("name", "content", "problem"), DAMAGED, ids=[name for name, _, _ in DAMAGED])
def test_damaged_file_is_one_sentence(places, name, content, problem):
    path = write(places, content, name)
    with pytest.raises(UserError) as error:
        read([path])
    message = str(error.value)
    assert message.startswith(f"{path} {problem}") and "\n" not in message
    assert message.endswith("convert it again")
