"""The sizing curve is shown when the hit-rate tool left one, and only if it is one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from chunkcache.console.sizing import Sizing, read_sizing, write_sizing
from chunkcache.errors import ConfigError

CURVE = {
    "made_at": 1.8e9,
    "trace": "requests of last week",
    "points": [
        {"capacity_bytes": 1 << 20, "hit_rate": 0.4},
        {"capacity_bytes": 1 << 24, "hit_rate": 0.9},
    ],
}


def test_without_a_file_there_is_no_curve(tmp_path: Path) -> None:
    assert read_sizing(tmp_path) is None


def test_a_curve_is_read(tmp_path: Path) -> None:
    (tmp_path / "sizing.json").write_text(json.dumps(CURVE))
    sizing = read_sizing(tmp_path)
    assert sizing is not None
    assert sizing.model_dump(mode="json") == CURVE


def test_a_curve_is_on_disk_before_it_has_its_name_and_the_old_one_stays_where_it_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = Sizing.model_validate(CURVE), Sizing.model_validate({**CURVE, "trace": "others"})
    write_sizing(tmp_path, old)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ConfigError, match=r"home: .*sizing\.json.*No space left"):
            write_sizing(tmp_path, new)
    assert read_sizing(tmp_path) == old
    assert write_sizing(tmp_path, new) == tmp_path / "sizing.json"
    assert read_sizing(tmp_path) == new and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        json.dumps({**CURVE, "points": CURVE["points"][:1]}).encode(),
        json.dumps({**CURVE, "points": [{"capacity_bytes": 1, "hit_rate": 1.2}] * 2}).encode(),
        json.dumps({**CURVE, "html": "<b>"}).encode(),
        json.dumps({**CURVE, "points": CURVE["points"] * 101}).encode(),
    ],
)
def test_what_is_no_curve_is_left_out(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "sizing.json").write_bytes(content)
    assert read_sizing(tmp_path) is None


def test_a_folder_of_that_name_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "sizing.json").mkdir()
    assert read_sizing(tmp_path) is None
