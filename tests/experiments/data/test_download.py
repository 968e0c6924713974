"""Downloads from a server on this machine: whole, of another hash, cut off, gone."""

import dataclasses
import hashlib
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from experiments.data import find, load
from experiments.data.catalogue import CATALOGUE
from experiments.data.download import _Bar
from experiments.data.types import Remote
from tests.experiments.data import test_usps

pytest.importorskip("pooch", reason="pip install 'npmerge[experiments]'")


class Site:
    """A server of the files of USPS, which counts what is asked for."""

    def __init__(self, folder: Path):
        folder.mkdir()
        test_usps.write_text(folder)
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.cut: dict[str, int] = {}  # bytes after which the connection is closed
        self.asked: list[str] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.rsplit("/", 1)[-1]
                site.asked.append(name)
                if name not in site.files:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(site.files[name])))
                self.end_headers()
                self.wfile.write(site.files[name][: site.cut.get(name)])

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/multiclass"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def site(tmp_path, monkeypatch) -> Iterator[Site]:
    """USPS is published here, and there is none anywhere else."""
    site = Site(tmp_path / "published")
    remote = tuple(Remote(f"{site.url}/{name}", f"md5:{hashlib.md5(site.files[name]).hexdigest()}") for name in NAMES)
    known = dataclasses.replace(CATALOGUE["usps"], remote=remote)
    monkeypatch.setattr(find, "CATALOGUE", {"usps": known})
    monkeypatch.setattr(find, "SHARED", tmp_path / "none")
    monkeypatch.setenv("NPMERGE_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    thread = threading.Thread(target=site.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield site
    site.close()
    thread.join()


NAMES = ["usps.bz2", "usps.t.bz2"]


def test_what_is_fetched_once_is_found_again(site, tmp_path):
    with pytest.raises(ValueError, match=r"no USPS in .*; --download fetches it$"):
        load("usps")
    data = load("usps", download=True)
    assert data.found == tmp_path / "cache" / "usps"
    assert len(data.train.labels) == 6
    assert site.asked == NAMES
    assert load("usps").test.labels.tolist() == load("usps", download=True).test.labels.tolist() == [0, 1, 2]
    assert site.asked == NAMES


def test_into_a_folder_that_is_given(site, tmp_path):
    folder = tmp_path / "mine"
    assert load("usps", folder, download=True).found == folder
    assert sorted(path.name for path in folder.iterdir()) == NAMES
    file = tmp_path / "a file"
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"a file is a file in which there is no USPS: give a folder to download into"):
        load("usps", file, download=True)


def test_a_file_of_another_hash(site, tmp_path):
    good = site.files["usps.t.bz2"]
    site.files["usps.t.bz2"] = good[:-1] + b"!"
    with pytest.raises(ValueError, match=r"usps.t.bz2 could not be downloaded into .*cache/usps: .*hash.* does not match"):
        load("usps", download=True)
    assert [path.name for path in (tmp_path / "cache" / "usps").iterdir()] == ["usps.bz2"]
    site.files["usps.t.bz2"] = good
    assert len(load("usps", download=True).test.labels) == 3
    assert site.asked == [*NAMES, "usps.t.bz2"]  # what was whole is not fetched again


def test_a_damaged_file_beside_a_missing_one_is_fetched_anew(site, tmp_path):
    folder = tmp_path / "cache" / "usps"
    folder.mkdir(parents=True)
    (folder / "usps.bz2").write_bytes(b"half of it")
    assert len(load("usps", download=True).train.labels) == 6


def test_a_server_that_stops_in_between(site, tmp_path):
    site.cut["usps.bz2"] = 1000
    with pytest.raises(ValueError, match=r"usps.bz2 could not be downloaded into .*; or fetch it yourself and give its folder"):
        load("usps", download=True)
    assert list((tmp_path / "cache" / "usps").iterdir()) == []
    with pytest.raises(ValueError, match="no USPS in"):
        load("usps")


def test_a_file_that_is_not_there(site):
    del site.files["usps.bz2"]
    with pytest.raises(ValueError, match=r"usps.bz2 could not be downloaded into .*404"):
        load("usps", download=True)


def test_a_server_that_is_gone(site):
    site.close()
    with pytest.raises(ValueError, match=r"usps.bz2 could not be downloaded into .*refused"):
        load("usps", download=True)


def test_without_pooch(site, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ValueError, match=r"USPS is downloaded by pooch, which is not installed: pip install .*or download h"):
        load("usps", download=True)
    assert site.asked == []


def test_progress_is_of_bytes():
    with _Bar("file") as bar:
        bar.total = 100
        bar.update(40)
        (task,) = bar.drawn.tasks
        assert (task.completed, task.total) == (40, 100)
        bar.reset()  # as pooch does before it fills the bar
        bar.update(100)
        assert task.completed == 100
        bar.close()
