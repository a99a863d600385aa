"""Names of codecs: read, written in one way, refused with what is wrong; digests of their own."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache.codec_spec import CODEC_NAMES, is_lossless, parse_codec, stored_under
from chunkcache.config import load_settings
from chunkcache.errors import ConfigError

FILE = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ("raw", "raw"),
        ("int4", "int4(group=32)"),
        (" int4 ( group = 64 ) ", "int4(group=64)"),
        ("bits(v=5)", "bits(k=3,v=5,group=32)"),
        ("gear(sparse=0.0100000001)", "gear(bits=4,rank=4,sparse=0.01,group=32)"),
        (f"basis(k=1.50,file={FILE})", f"basis(file={FILE},k=1.5,v=4.7)"),
        ("zstd", "zstd(over=raw,level=3)"),
        ("zstd(level=9,over=int4(group=64))", "zstd(over=int4(group=64),level=9)"),
    ],
)
def test_a_codec_has_one_name_which_says_all_its_parameters(said: str, written: str) -> None:
    assert str(parse_codec(said)) == written
    assert parse_codec(written) == parse_codec(said)
    assert load_settings(store={"codec": said}).store.codec == written


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("", "must be one of raw, int8"),
        ("zip", "must be one of raw, int8.*'zip'"),
        ("raw(x=1)", "raw has no parameter 'x', it has none"),
        ("int4(32)", "int4 has no parameter '32', it has group"),
        ("int4(group=0)", "int4.group is '0', it must be a whole number from 8 to 1024"),
        ("int4(group=16.5)", "whole number"),
        ("gear(sparse=nan)", "gear.sparse is 'nan', it must be a number from 0 to 0.5"),
        ("int4(group=32,group=64)", "given twice"),
        ("int4(group=32", "Expected ',', found 'the end'"),
        ("int4(group=32))", "goes on after its end"),
        ("int4(group=32 64)", "Expected ','"),
        ("basis", "basis.file must be given"),
        ("basis(file=../../etc/passwd)", "cannot be read|32 hexadecimal digits"),
        ("zstd(over=zstd)", "must be one of raw.*'zstd' is none"),
        (f"zstd(over=joint(file={FILE}))", "must be one of raw.*'joint' is none"),
        ("joint", "joint.file must be given"),
        ("é", "cannot be read"),
        ("r" * 201, "at most 200 characters"),
    ],
)
def test_what_is_no_codec_is_refused_with_what_is_wrong(said: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_codec(said)
    with pytest.raises(ConfigError, match=r"store\.codec: got .*Hint"):
        load_settings(store={"codec": said})
    assert not is_lossless(said)


@settings(max_examples=100, deadline=None)
@given(st.text("rawzstdint48(group=,)0.5 ", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        spec = parse_codec(text)
    except ValueError:
        return
    assert parse_codec(str(spec)) == spec


def test_only_raw_and_what_presses_it_lose_nothing() -> None:
    given_file = {name: f"{name}(file={FILE})" for name in ("basis", "joint")}
    lossless = {name for name in CODEC_NAMES if is_lossless(given_file.get(name, name))}
    assert lossless == {"raw", "zstd"}
    assert not is_lossless("zstd(over=int8)")


def test_lossy_records_lie_apart_by_name_and_parameter_and_lossless_ones_together() -> None:
    digest = bytes(range(32))
    names = ("raw", "zstd", "int4(group=32)", "int4(group=64)", "zstd(over=int4(group=32),level=3)")
    places = [stored_under(digest, name) for name in names]
    assert places[0] == places[1] == digest
    assert len(set(places)) == 4 and all(len(place) == 32 for place in places)
    assert stored_under(digest[::-1], "int4(group=32)") != places[2]
