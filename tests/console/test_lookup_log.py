"""The log of look-ups: digests alone, bounded, whole lines whoever writes, and read as a trace."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path

import pytest

from chunkcache.console.lookup_log import FILE_NAME, OLDER_NAME, LoggedPart, LookupLog, RecordFacts
from chunkcache.errors import InvalidRequest
from chunkcache.evaluate.hitrate.service_log import read_service_log
from chunkcache.evaluate.hitrate.trace import RecordSizes

FACTS = RecordFacts(bytes_per_token=256, disk_bytes_per_token=512, page_tokens=32, layers=2)


def part(name: str, tokens: int = 5, is_passage: bool = True) -> LoggedPart:
    return LoggedPart(name, tokens, is_passage)


def requests(home: Path) -> list[list[str]]:
    return [[str(chunk) for chunk, _ in r.passages()] for r in read_service_log(home)]


def test_what_is_noted_is_a_trace(tmp_path: Path) -> None:
    log = LookupLog(tmp_path / "home", 1 << 20, FACTS)
    log.note([part("h", 9, False), part("a"), part("q", 2, False), part("b"), part("q", 3, False)])
    log.note([part("h", 9, False)])  # no passage: nothing to tell
    log.note([part("b")])
    log.close()
    log.note([part("c")])
    trace = read_service_log(tmp_path / "home")
    assert trace.sizes == RecordSizes(256, 32, 2, 512)
    assert trace.name == "2 requests of this service" and trace.num_requests == 2
    first, second = trace
    assert first.ids == ["h", "a", "q", "b"] and first.is_passage == [False, True, False, True]
    assert second.ids == ["b"] and second.at_s >= first.at_s > 1.7e9
    file = tmp_path / "home" / FILE_NAME
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_two_files_of_half_the_limit_are_kept(tmp_path: Path) -> None:
    log = LookupLog(tmp_path, 4000, FACTS)
    for number in range(200):
        log.note([part(str(number))])
    sizes = [(tmp_path / name).stat().st_size for name in (OLDER_NAME, FILE_NAME)]
    assert all(0 < size <= 2000 for size in sizes)
    found = requests(tmp_path)
    assert found == [[str(n)] for n in range(200 - len(found), 200)] and len(found) > 30
    for name in (OLDER_NAME, FILE_NAME):
        assert json.loads((tmp_path / name).read_text().splitlines()[0])["bytes_per_token"] == 256


def test_a_line_larger_than_a_file_is_left_out(tmp_path: Path) -> None:
    log = LookupLog(tmp_path, 1000, FACTS)
    log.note([part("a")])
    log.note([part(str(n)) for n in range(100)])
    log.note([part("b")])
    assert requests(tmp_path) == [["a"], ["b"]]


def test_several_writers_of_one_folder_lose_no_line(tmp_path: Path) -> None:
    """Each with a file of its own, as processes have; one renames, the others notice."""
    logs = [LookupLog(tmp_path, 14_000, FACTS) for _ in range(4)]

    def write(log: LookupLog, writer: int) -> None:
        for number in range(40):
            log.note([part(f"{writer}-{number}")])

    threads = [threading.Thread(target=write, args=(log, n)) for n, log in enumerate(logs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [chunk for (chunk,) in requests(tmp_path)]
    for writer in range(4):
        mine = [chunk for chunk in found if chunk.startswith(f"{writer}-")]
        assert mine == [f"{writer}-{n}" for n in range(40)]
    assert (tmp_path / OLDER_NAME).exists()


def test_a_torn_line_is_left_out(tmp_path: Path) -> None:
    log = LookupLog(tmp_path, 1 << 20, FACTS)
    log.note([part("a")])
    with (tmp_path / FILE_NAME).open("ab") as file:
        file.write(b'{"at": 1, "chu\x00\n')
    log.note([part("b")])
    assert requests(tmp_path) == [["a"], ["b"]]


def test_a_clock_set_back_and_another_length_do_no_harm(tmp_path: Path) -> None:
    lines = [{"at": 9, "chunks": [{"id": "a", "tokens": 5}]},
             {"at": 4, "chunks": [{"id": "a", "tokens": 6}]}]  # fmt: skip
    LookupLog(tmp_path, 1 << 20, FACTS).note([part("z")])
    with (tmp_path / FILE_NAME).open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))
    *_, before, last = read_service_log(tmp_path)
    assert last.at_s == before.at_s and last.tokens == [5]


def test_a_folder_that_cannot_be_written_is_given_up_once(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    log = LookupLog(tmp_path, 1 << 20, FACTS)
    log.note([part("a")])
    os.rmdir(tmp_path / FILE_NAME)
    log.note([part("b")])
    assert not (tmp_path / FILE_NAME).exists()


def test_without_a_log_the_hint_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"Hint: name a trace, or .* store\.lookup_log_bytes"):
        read_service_log(tmp_path)
    LookupLog(tmp_path, 1 << 20, FACTS).note([])
    (tmp_path / FILE_NAME).write_text("")
    with pytest.raises(InvalidRequest, match="it is empty"):
        read_service_log(tmp_path)
