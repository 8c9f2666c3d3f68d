"""Files of weights between the ServerApp and the gateways."""

from pathlib import Path

import pytest

from common.errors import WireError
from common.wire.gateway_calls import PIECE_BYTES
from server.transport import weight_files
from server.transport.weight_files import TooMuch, WeightFiles

NODE = 7


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "weights"


@pytest.fixture
def files(folder: Path) -> WeightFiles:
    made = WeightFiles(folder)
    made.begin()
    return made


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_weights_are_written_once_for_all_sites(files: WeightFiles, folder: Path) -> None:
    shared = files.share(lambda path: path.write_bytes(b"weights"))
    offered = {node: files.offer(node, shared) for node in (7, 8)}
    assert len({(folder / str(node) / "offered" / name).stat().st_ino for node, name in offered.items()}) == 1
    shared.unlink()
    assert b"".join(files.read(7, offered[7])) == b"weights"
    files.remove(7, offered[7])
    assert b"".join(files.read(8, offered[8])) == b"weights"
    files.remove(8, offered[8])
    files.remove(8, offered[8])  # it may be gone already
    assert names(folder) == set()


def test_a_file_is_read_in_pieces_of_half_a_mib(files: WeightFiles) -> None:
    shared = files.share(lambda path: path.write_bytes(bytes(2 * PIECE_BYTES + 5)))
    assert [len(piece) for piece in files.read(NODE, files.offer(NODE, shared))] == [2**19, 2**19, 5]


def test_what_a_site_sends_is_taken_once(files: WeightFiles, folder: Path) -> None:
    name = files.write(NODE, [b"an ", b"answer"])
    taken = files.take(NODE, name)
    assert taken.read_bytes() == b"an answer"
    assert names(folder) == {taken.name}
    with pytest.raises(WireError, match="names a file that was not uploaded"):
        files.take(NODE, name)


def test_a_site_may_send_so_much_and_no_more(files: WeightFiles, folder: Path) -> None:
    files.limit(NODE, 4)
    files.write(NODE, [b"12", b"34"])
    with pytest.raises(TooMuch):
        files.write(NODE, [b"12", b"345"])
    files.write(8, [b"12345"])  # the limit is that site's
    assert not [name for name in names(folder) if name.endswith(".part")]


def test_without_a_limit_of_its_own_a_site_may_send_8_gib(files: WeightFiles, monkeypatch) -> None:
    assert weight_files.MOST_BYTES == 8 * 2**30
    monkeypatch.setattr(weight_files, "MOST_BYTES", 3)
    with pytest.raises(TooMuch):
        files.write(NODE, [b"1234"])


def test_of_answers_that_are_not_taken_the_newest_three_are_kept(files: WeightFiles, folder: Path) -> None:
    sent = [files.write(NODE, [b"%d" % number]) for number in range(5)]
    assert names(folder) == set(sent[-3:])
    assert files.take(NODE, sent[2]).read_bytes() == b"2"


def test_a_site_sends_two_answers_at_once_and_no_more(files: WeightFiles) -> None:
    def first():
        yield b"1"
        files.write(NODE, second())

    def second():
        yield b"2"
        with pytest.raises(TooMuch, match="sending 2 answers already"):
            files.write(NODE, [b"3"])
        files.write(8, [b"another site may"])

    files.write(NODE, first())
    files.write(NODE, [b"4"])  # all others have ended


def test_a_site_cannot_read_back_what_it_sent(files: WeightFiles) -> None:
    with pytest.raises(FileNotFoundError):
        list(files.read(NODE, files.write(NODE, [b"x"])))


def test_an_upload_that_breaks_off_leaves_nothing(files: WeightFiles, folder: Path) -> None:
    def breaks():
        yield b"1"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        files.write(NODE, breaks())
    assert names(folder) == set()


@pytest.mark.parametrize("name", ["../8/x", "limit", "", "0" * 31, "0" * 32 + "\n", "G" * 32])
def test_what_is_no_name_of_a_file_leads_nowhere(files: WeightFiles, name: str) -> None:
    files.limit(NODE, 4)
    with pytest.raises(FileNotFoundError):
        list(files.read(NODE, name))
    with pytest.raises(WireError):
        files.take(NODE, name)


def test_a_server_app_that_begins_finds_nothing_of_the_one_before(files: WeightFiles, folder: Path) -> None:
    files.offer(NODE, files.share(lambda path: path.write_bytes(b"w")))
    files.write(NODE, [b"answer"])
    files.limit(NODE, 4)
    (folder / str(NODE) / "uploaded" / "x.part").write_bytes(b"an upload in progress")
    files.clear()
    assert names(folder) == {"x.part"}


def test_a_superlink_that_begins_finds_an_empty_folder_of_its_own(folder: Path) -> None:
    (folder / "7").mkdir(parents=True)
    (folder / "7" / "x").write_bytes(b"old")
    WeightFiles(folder).begin()
    assert list(folder.iterdir()) == []
    assert folder.stat().st_mode & 0o777 == 0o700
