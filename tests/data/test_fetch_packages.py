"""Packages are fetched through pip and npm, checked, kept, and never installed."""

import hashlib
import zipfile

import pytest

from qwq.data.fetch import Package, fetch
from qwq.errors import QwqError


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An offline index with one real wheel; the cache is a fresh folder. Returns the wheel."""
    (tmp_path / "index").mkdir()
    path = tmp_path / "index" / "demo_corpus-1.0-py3-none-any.whl"
    info = "demo_corpus-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: demo-corpus\nVersion: 1.0\nRequires-Dist: absent\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
        wheel.writestr("demo_corpus/text.txt", "hello")
    for name, value in {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(path.parent),
        "QWQ_CACHE_DIR": str(tmp_path / "c"),
    }.items():
        monkeypatch.setenv(name, value)
    return path


def pinned(path, **changes) -> Package:
    values = {"index": "pypi", "name": "demo-corpus", "version": "1.0"}
    return Package(**values | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()} | changes)


def test_a_wheel_is_fetched_once_without_its_dependencies(index, tmp_path, capfd):
    """The second time it comes from the cache: the index may be gone."""
    package = pinned(index)
    first = fetch(package)
    assert first.read_bytes() == index.read_bytes()
    assert first.parent == tmp_path / "c" / "packages"
    assert capfd.readouterr().err == "fetching demo-corpus 1.0 from PyPI ...\n"
    index.unlink()
    assert fetch(package) == first
    assert capfd.readouterr().err == ""
    assert [p.name for p in first.parent.iterdir()] == [first.name]


def test_a_damaged_copy_in_the_cache_is_fetched_again(index):
    """A half-written file from another day does no harm."""
    path = fetch(pinned(index))
    path.write_bytes(b"half")
    assert fetch(pinned(index)).read_bytes() == index.read_bytes()


def test_another_file_than_the_tested_one_is_refused(index, tmp_path):
    """The checksum is pinned; nothing stays in the cache."""
    with pytest.raises(QwqError, match=r"demo-corpus 1.0 is not the file that was tested \(SHA-256"):
        fetch(pinned(index, sha256="0" * 64))
    assert list((tmp_path / "c" / "packages").iterdir()) == []


def test_what_the_index_lacks_is_one_line(index):
    """pip's own last words, without its traceback."""
    with pytest.raises(QwqError, match=r"^demo-corpus 9.9 could not be downloaded: ERROR: .*demo-corpus==9.9$"):
        fetch(pinned(index, version="9.9"))


def test_without_npm_its_packages_cannot_be_had(index, monkeypatch):
    """And the line says so."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(QwqError, match=r"corpus 1\.0 comes from npm, and there is no npm on this machine"):
        fetch(pinned(index, index="npm", name="corpus"))
