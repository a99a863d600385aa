"""Every form of trace, each small enough to be checked by hand, and every fault by its line."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chunkcache.errors import InvalidRequest
from chunkcache.evaluate.hitrate.exports import write_chunk_lines, write_lmcache
from chunkcache.evaluate.hitrate.oracle_general import object_number, write_oracle_general
from chunkcache.evaluate.hitrate.sources import read_trace
from chunkcache.evaluate.hitrate.trace import RecordSizes, Trace, TracedRequest, measure

Prompts = list[tuple[float, list[tuple[Any, int]]]]


def passages(trace: Trace) -> Prompts:
    return [(request.at_s, list(request.passages())) for request in trace]


def lines(path: Path, *objects: Any) -> Path:
    path.write_text("".join(f"{json.dumps(o) if not isinstance(o, str) else o}\n" for o in objects))
    return path


def part(chunk: Any, tokens: int, **more: Any) -> dict[str, Any]:
    return {"id": chunk, "tokens": tokens, **more}


def test_lines_of_chunks(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "t.jsonl",
        {"at": 0.5, "chunks": [part("head", 7, passage=False), part("a", 3), part(2, 4)]},
        "",
        {"at": 0.5, "chunks": [], "user": "left alone"},
        {"at": 2, "chunks": [part(2, 4), part("a", 3), part("a", 3)]},
    )
    trace = read_trace(path)
    assert passages(trace) == [
        (0.5, [("a", 3), (2, 4)]), (0.5, []), (2.0, [(2, 4), ("a", 3), ("a", 3)]),
    ]  # fmt: skip
    assert trace.sizes is None
    facts = measure(trace, RecordSizes(10, page_tokens=4))
    assert (facts.requests, facts.accesses, facts.tokens) == (3, 5, 17)
    assert (facts.distinct, facts.footprint_tokens, facts.once) == (2, 7, 0)
    assert facts.footprint_bytes == 80 == facts.largest_prompt_bytes  # two chunks of a page of 4
    assert facts.disk_footprint_bytes == 2 * (4096 + 4096)
    assert facts.highest_hit_rate == 1 - 2 / 5 and facts.highest_token_hit_rate == 1 - 7 / 17
    assert facts.span_s == 1.5


def test_a_log_says_what_it_was_made_with(tmp_path: Path) -> None:
    head = {"log": "lookups", "bytes_per_token": 256, "page_tokens": 32, "layers": 2,
            "disk_bytes_per_token": 512}  # fmt: skip
    path = lines(tmp_path / "log", head, {"at": 1.0, "chunks": [part("a", 3)]}, head)
    trace = read_trace(path)
    assert trace.sizes == RecordSizes(256, 32, 2, 512)
    assert passages(trace) == [(1.0, [("a", 3)])]


def test_mooncake_has_blocks_of_512_and_milliseconds(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "m.jsonl",
        {"timestamp": 0, "input_length": 1030, "output_length": 1, "hash_ids": [0, 1, 2]},
        {"timestamp": 1500, "input_length": 1024, "output_length": 1, "hash_ids": [0, 1]},
        {"timestamp": 1500, "input_length": 0, "output_length": 1, "hash_ids": []},
    )
    assert passages(read_trace(path)) == [
        (0.0, [(0, 512), (1, 512), (2, 6)]), (1.5, [(0, 512), (1, 512)]), (1.5, []),
    ]  # fmt: skip


RAGPULSE = {
    "1_sys_prompt.jsonl": [{"sys_prompt_id": 10, "token_length": 512}],
    "2_passages.jsonl": [{"passage_id": i, "token_length": 100 + i} for i in range(3)],
    "3_history.jsonl": [{"history_id": 20, "token_length": 11}],
    "4_user_input.jsonl": [{"user_input_id": 30, "token_length": 9}],
    "5_web_search.jsonl": [{"web_search_id": 40, "token_length": 50}],
}


def ragpulse(folder: Path, *requests: Any) -> Path:
    for name, content in RAGPULSE.items():
        lines(folder / name, *content)
    return lines(folder / "0_trace.jsonl", *requests)


def asked(at: str, *ids: int, **parts: list[int]) -> dict[str, Any]:
    return {
        "timestamp": at, "input_length": 1, "output_length": 1, "session_id": "s",
        "hash_ids": {"sys_prompt": [10], "passages_ids": list(ids), "history": [20],
                     "web_search": [], "user_input": [30], **parts},
    }  # fmt: skip


def test_ragpulse_is_sorted_by_time_and_has_context(tmp_path: Path) -> None:
    path = ragpulse(tmp_path, asked("9", 2, 0), asked("3", 1), asked("9", 0, web_search=[40]))
    for source in (path, tmp_path):
        trace = read_trace(source)
        assert passages(trace) == [
            (3.0, [(1, 101)]), (9.0, [(2, 102), (0, 100)]), (9.0, [(0, 100)]),
        ]  # fmt: skip
    last = list(trace)[-1]
    assert last.ids == [10, 0, 20, 40, 30] and last.tokens == [512, 100, 11, 50, 9]
    assert last.is_passage == [False, True, False, False, False]


def columns(path: Path, **arrays: Any) -> Path:
    found = {"obj": [5, 6, 5, 7], "size_tok": [3, 4, 3, 9], "req": [0, 0, 2, 2],
             "ts": [1, 1, 8, 8], **arrays}  # fmt: skip
    np.savez(path, **{name: np.asarray(a) for name, a in found.items() if a is not None})
    return path


def test_columns(tmp_path: Path) -> None:
    path = columns(tmp_path / "t.npz", kind=[0, 1, 1, 4])
    assert passages(read_trace(path)) == [(1.0, [(6, 4)]), (8.0, [(5, 3)])]
    # of one kind alone, whatever its number, all are passages
    path = columns(tmp_path / "t.npz", kind=[0, 0, 0, 0])
    assert passages(read_trace(path)) == [(1.0, [(5, 3), (6, 4)]), (8.0, [(5, 3), (7, 9)])]


def test_lmcache_chunks_are_whole_and_the_rest_is_context(tmp_path: Path) -> None:
    event = {
        "timestamp": 1.5, "model_name": "m", "chunk_size": 4, "seq_len": 10,
        "dtypes": ["bfloat16"], "shapes": [[2, 3, 4, 5]], "chunk_hashes": ["0xa", "0xb"],
    }  # fmt: skip
    trace = read_trace(lines(tmp_path / "l.jsonl", event))
    assert trace.sizes == RecordSizes(60)  # 2·3·4·5 numbers of 2 bytes in 4 tokens
    (request,) = trace
    assert list(request.passages()) == [("0xa", 4), ("0xb", 4)]
    assert request.tokens == [4, 4, 2]


def test_oracle_general_to_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "t.oracleGeneral"
    never = 2**63 - 1
    records = [(0, 7, 300, 3), (1, 8, 600, never), (1, 7, 300, never)]
    path.write_bytes(b"".join(struct.pack("<IQIq", *record) for record in records))
    trace = read_trace(path, bytes_per_token=100)
    assert passages(trace) == [(0.0, [(7, 3)]), (1.0, [(8, 6)]), (1.0, [(7, 3)])]
    again = tmp_path / "again.oracleGeneral"
    assert write_oracle_general(trace, again, RecordSizes(100)) == 3
    assert again.read_bytes() == path.read_bytes()


def test_times_for_libcachesim_count_from_the_first_request(tmp_path: Path) -> None:
    trace = Trace(
        "t", lambda: iter([TracedRequest(1.8e9, ["a"], [2]), TracedRequest(1.8e9 + 5, ["a"], [2])])
    )
    path = tmp_path / "t.oracleGeneral"
    write_oracle_general(trace, path, RecordSizes(1))
    assert [at for at, _ in passages(read_trace(path))] == [0.0, 5.0]
    assert object_number("a") >= 2**63 > object_number(7) == 7


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = ragpulse(tmp_path, asked("3", 1, 2), asked("9", 2, 0))
    trace = read_trace(path)
    copy = tmp_path / "copy.jsonl"
    assert write_chunk_lines(trace, copy) == 2
    assert list(read_trace(copy)) == list(trace)
    packed = tmp_path / "copy.jsonl.gz"
    packed.write_bytes(gzip.compress(copy.read_bytes()))
    assert list(read_trace(packed)) == list(trace)
    alone = tmp_path / "alone.jsonl"
    assert write_chunk_lines(trace.by_access(), alone) == 4
    assert passages(read_trace(alone)) == [
        (3.0, [(1, 101)]),
        (3.0, [(2, 102)]),
        (9.0, [(2, 102)]),
        (9.0, [(0, 100)]),
    ]


def test_to_lmcache_a_passage_after_another_is_another_chunk(tmp_path: Path) -> None:
    def hashes(*requests: list[tuple[str, int]]) -> list[list[str]]:
        path = tmp_path / "l.jsonl"
        read = [TracedRequest(0.0, [i for i, _ in r], [n for _, n in r]) for r in requests]
        write_lmcache(Trace("t", lambda: iter(read)), path, RecordSizes(2), chunk_tokens=4)
        return [json.loads(line)["chunk_hashes"] for line in path.read_text().splitlines()]

    one, same, longer, moved = hashes(
        [("a", 6), ("b", 3)], [("a", 6), ("b", 3)], [("a", 6), ("b", 3), ("c", 4)],
        [("b", 3), ("a", 6)],
    )  # fmt: skip
    assert one == same == longer[:2] and len(one) == 2 and len(longer) == 3
    assert not set(moved) & set(longer)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.jsonl", ["nope"], "t.jsonl line 1: line: got 'nope\\n', must be JSON"),
        ("t.jsonl", ["[1]"], "line 1: line: got [1], must be a JSON object"),
        ("t.jsonl", [{"at": 1}], "must be in one of the forms chunks, ragpulse"),
        ("t.jsonl", [{"at": 1, "chunks": {}}], "line 1: chunks: got {}"),
        ("t.jsonl", [{"at": 1, "chunks": ["a"]}], "line 1: chunks[0]: got 'a'"),
        ("t.jsonl", [{"at": 1, "chunks": [{"id": "a"}]}], "chunks[0].tokens: got None"),
        ("t.jsonl", [{"at": 1, "chunks": [part("a", 0)]}], "chunks[0].tokens: got 0"),
        ("t.jsonl", [{"at": 1, "chunks": [part("a", True)]}], "chunks[0].tokens: got True"),
        ("t.jsonl", [{"at": 1, "chunks": [part(1.5, 2)]}], "chunks[0].id: got 1.5"),
        ("t.jsonl", [{"at": 1, "chunks": [part("a", 2, passage=1)]}], "chunks[0].passage: got 1"),
        ("t.jsonl", [{"at": -1, "chunks": []}], "line 1: at: got -1"),
        ("t.jsonl", [{"at": True, "chunks": []}], "line 1: at: got True"),
        ("t.jsonl", ['{"at": NaN, "chunks": []}'], "line 1: at: got nan"),
        ("t.jsonl", ['{"at": ' + "9" * 400 + ', "chunks": []}'], "line 1: at: got 999"),
        ("t.jsonl", ['{"at": ' + "9" * 5000 + "}"], "line 1: line: got"),
        ("t.jsonl", [{"at": 2, "chunks": []}, {"at": 1, "chunks": []}],
         "line 2: at: got 1, must be at least that of the line before (2 s)"),
        ("t.jsonl", [{"at": 1, "chunks": [part("a", 2)]}, {"at": 1, "chunks": [part("a", 3)]}],
         "line 2: tokens of 'a': got 3, must be 2, as in an earlier line"),
        ("t.jsonl", [{"log": "l", "bytes_per_token": 0}], "line 1: bytes_per_token: got 0"),
        ("t.jsonl", [], "must be in one of the forms"),
        ("t.jsonl", [{"timestamp": 0, "input_length": 512, "hash_ids": [1, 2]}],
         "input_length: got 512, must be that of 2 blocks of 512"),
        ("t.jsonl", [{"timestamp": 0, "input_length": 9, "hash_ids": [[1]]}],
         "hash_ids: got [[1]]"),
        ("t.jsonl", [{"timestamp": 0, "seq_len": 3, "chunk_size": 4, "chunk_hashes": ["a"]}],
         "line 1: seq_len: got 3, must be at least 4"),
        ("0_trace.jsonl", [asked("1", 0)], "must be beside 0_trace.jsonl"),
    ],
)  # fmt: skip
def test_a_fault_names_line_field_value_and_limit(
    tmp_path: Path, name: str, content: list[Any], said: str
) -> None:
    path = lines(tmp_path / name, *content)
    with pytest.raises(InvalidRequest) as error:
        list(read_trace(path))
    assert said in error.value.message and "Hint: " in error.value.message


def test_an_id_without_a_length_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidRequest, match=r"line 2: hash_ids\.passages_ids: got 7, must be an id"
    ):
        list(read_trace(ragpulse(tmp_path, asked("1", 0), asked("2", 7))))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"ts": None}, "ts: got 'missing'"),
        ({"ts": [1, 1, 8]}, "ts: got 'int64 (3,)'"),
        ({"ts": [1.0, 1, 8, 8]}, "ts: got 'float64 (4,)'"),
        ({"size_tok": [3, 0, 3, 9]}, "row 1: size_tok: got 0, must be at least 1"),
        ({"req": [0, 0, 2, 1]}, "row 3: req: got 1, must be at least that of the row before"),
        ({"ts": np.array([1, 1, 8, 7], np.uint32)}, "row 3: ts: got 7, must be at least that"),
        ({"ts": [-1, 1, 8, 8]}, "row 0: ts: got -1"),
    ],
)
def test_a_fault_in_columns_names_the_row(tmp_path: Path, arrays: Any, said: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        list(read_trace(columns(tmp_path / "t.npz", **arrays)))
    assert said in error.value.message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"123", "length: got 3, must be a multiple of 24 bytes"),
        (struct.pack("<IQIq", 0, 1, 150, 0), "record 0: bytes: got 150, must be a multiple of 100"),
        (struct.pack("<IQIqIQIq", 5, 1, 100, 0, 4, 1, 100, 0), "record 1: time: got 4"),
    ],
)
def test_a_fault_in_binary_records_names_the_record(
    tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "t.oracleGeneral.bin").write_bytes(content)
    with pytest.raises(InvalidRequest) as error:
        list(read_trace(tmp_path / "t.oracleGeneral.bin", bytes_per_token=100))
    assert said in error.value.message


def test_what_is_not_there_damaged_or_no_archive_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no such file"):
        read_trace(tmp_path / "none")
    (tmp_path / "t.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(InvalidRequest, match=r"t\.npz: cannot be read"):
        list(read_trace(tmp_path / "t.npz"))
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(b'{"at": 1, "chunks": []}\n' * 99)[:-9])
    with pytest.raises(InvalidRequest, match=r"t\.jsonl\.gz line \d+: cannot be read"):
        list(read_trace(tmp_path / "t.jsonl.gz", "chunks"))
    whole = bytearray(gzip.compress(b'{"at": 1, "chunks": []}\n' * 99))
    whole[10:14] = b"\xff" * 4
    (tmp_path / "t.jsonl.gz").write_bytes(whole)
    with pytest.raises(InvalidRequest, match=r"t\.jsonl\.gz line 1: cannot be read"):
        list(read_trace(tmp_path / "t.jsonl.gz", "chunks"))


def test_an_export_that_fails_leaves_nothing(tmp_path: Path) -> None:
    path = lines(tmp_path / "t.jsonl", {"at": 1, "chunks": [part("a", 2)]}, "nope")
    out = tmp_path / "out"
    for write in (
        lambda: write_chunk_lines(read_trace(path), out / "a"),
        lambda: write_oracle_general(read_trace(path), out / "b", RecordSizes(1)),
    ):
        with pytest.raises(InvalidRequest, match="line 2"):
            write()
    assert not out.exists() or not list(out.iterdir())
