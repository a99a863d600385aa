"""Settings: file < environment < arguments; what is wrong is named with its value and a limit."""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from chunkcache.config import Settings, load_settings
from chunkcache.engine.loading import model_ids
from chunkcache.errors import ConfigError
from chunkcache.policy_names import RepairPolicyName
from chunkcache.repair import policy_named
from chunkcache.setting_names import OTHER_VARIABLES, variable_of

SECTIONS: dict[str, type[BaseModel]] = {
    name: field.annotation
    for name, field in Settings.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
}

SETTING_VARIABLES = {variable_of(name) for name in Settings.model_fields} | {
    variable_of(f"{name}.{field}") for name in SECTIONS for field in SECTIONS[name].model_fields
}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("CHUNKCACHE_"):
            monkeypatch.delenv(name)


def toml_file(folder: Path, text: str) -> Path:
    path = folder / "chunkcache.toml"
    path.write_text(text, encoding="utf-8")
    return path


# ------------------------------------------------------------------ who wins


@given(
    in_file=st.none() | st.integers(0, 65535),
    in_environment=st.none() | st.integers(0, 65535),
    in_arguments=st.none() | st.integers(0, 65535),
)
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_environment_beats_the_file_and_arguments_beat_both(
    tmp_path: Path, in_file: int | None, in_environment: int | None, in_arguments: int | None
) -> None:
    path = toml_file(tmp_path, "" if in_file is None else f"[server]\nport = {in_file}\n")
    arguments: dict[str, Any] = {} if in_arguments is None else {"server": {"port": in_arguments}}
    with pytest.MonkeyPatch.context() as patch:
        if in_environment is not None:
            patch.setenv("CHUNKCACHE_SERVER__PORT", str(in_environment))
        port = load_settings(path, **arguments).server.port
    said = [value for value in (in_arguments, in_environment, in_file) if value is not None]
    assert port == (said[0] if said else 8321)


def test_sections_are_merged_field_by_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = toml_file(tmp_path, "[retrieval]\ntop_k = 3\nchunk_tokens = 100\nmode = 'vector'\n")
    monkeypatch.setenv("CHUNKCACHE_RETRIEVAL__CHUNK_TOKENS", "200")
    monkeypatch.setenv("CHUNKCACHE_REPAIR__BUDGET", "0.25")
    loaded = load_settings(path, retrieval={"mode": "lexical"})
    assert (loaded.retrieval.top_k, loaded.retrieval.chunk_tokens) == (3, 200)
    assert loaded.retrieval.mode == "lexical"
    assert loaded.repair.budget == 0.25
    assert loaded.repair.policy == Settings().repair.policy


def test_a_section_may_come_whole_as_json_and_its_fields_beat_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHUNKCACHE_STORE", json.dumps({"host_capacity_bytes": 5, "codec": "raw"}))
    assert load_settings().store.host_capacity_bytes == 5
    monkeypatch.setenv("CHUNKCACHE_STORE__HOST_CAPACITY_BYTES", "7")
    assert load_settings().store.host_capacity_bytes == 7
    monkeypatch.setenv("CHUNKCACHE_STORE", "{not json")
    with pytest.raises(ConfigError, match=r"settings: .*store"):
        load_settings()


def test_fields_that_depend_on_each_other_are_judged_when_all_have_spoken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An overlap that would be wrong beside the default chunk is right beside the file's."""
    path = toml_file(tmp_path, "[retrieval]\nchunk_tokens = 1000\n")
    monkeypatch.setenv("CHUNKCACHE_RETRIEVAL__OVERLAP_TOKENS", "400")
    assert load_settings(path).retrieval.overlap_tokens == 400


@pytest.mark.parametrize("service", ["CHUNKCACHE", "CHUNKCACHE_STORE"])
def test_what_kubernetes_tells_about_a_service_is_no_setting(
    service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "tcp://10.0.0.1:80"
    told = {
        "SERVICE_HOST": "10.0.0.1", "SERVICE_PORT": "80", "SERVICE_PORT_HTTP_API": "80",
        "PORT": url, "PORT_80_TCP": url, "PORT_80_TCP_PROTO": "tcp", "PORT_80_TCP_PORT": "80",
        "PORT_80_TCP_ADDR": "10.0.0.1",
    }  # fmt: skip
    for name, value in told.items():
        monkeypatch.setenv(f"{service}_{name}", value)
    assert load_settings().server.port == 8321


def test_a_variable_that_is_read_elsewhere_is_in_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name in the code is a setting, or one of the list."""
    root = Path(__file__).parent.parent
    folders = ("chunkcache", "client", "kernels", "indexes", "integrations", "benchmarks",
               "examples", "tests", "docker")  # fmt: skip
    known = (Path(__file__), root / "chunkcache" / "setting_names.py")  # who only lists them
    said = {
        name
        for folder in folders
        for path in (root / folder).rglob("*")
        if path.suffix in {".py", ".sh", ".cpu", ".cuda"} and path not in known
        for name in re.findall(r"\bCHUNKCACHE_[A-Z][A-Z_]*[A-Z]\b", path.read_text("utf-8"))
    }
    assert said > OTHER_VARIABLES
    for name in said - SETTING_VARIABLES:
        monkeypatch.setenv(name, "x")
    load_settings()


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("CHUNKCACHE_STORE__HOST_CAPCITY", "CHUNKCACHE_STORE__HOST_CAPACITY_BYTES"),
        ("CHUNKCACHE_STORE_HOST_CAPACITY_BYTES", "CHUNKCACHE_STORE__HOST_CAPACITY_BYTES"),
        ("CHUNKCACHE_HOST_CAPACITY_BYTES", "CHUNKCACHE_STORE__HOST_CAPACITY_BYTES"),
        ("chunkcache_server__prot", "CHUNKCACHE_SERVER__PORT"),
        ("CHUNKCACHE_SERVER_PORT", "CHUNKCACHE_SERVER__PORT"),
        ("CHUNKCACHE_PORT", "CHUNKCACHE_SERVER__PORT"),
        ("CHUNKCACHE_SERVER__PORT__X", "CHUNKCACHE_SERVER__PORT"),
        ("CHUNKCACHE_HOME__X", "CHUNKCACHE_HOME"),
        ("CHUNKCACHE_NOPE__X", "CHUNKCACHE_"),
        ("CHUNKCACHE_", "CHUNKCACHE_"),
    ],
)
def test_a_variable_that_is_no_setting_is_named_with_the_nearest_that_is(
    name: str, right: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "8000")
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert f"settings: {name}: there is no such setting. Hint: {right}" in str(caught.value)
    assert "8000" not in str(caught.value)  # it might be a secret


def test_all_variables_that_are_no_settings_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHUNKCACHE_MODEL__NAMES", "x")
    monkeypatch.setenv("CHUNKCACHE_ENGINE__STEP_TOKEN", "x")
    with pytest.raises(ConfigError, match=r"STEP_TOKEN: .*MODEL__NAMES: .*MODEL__NAME is"):
        load_settings()


def test_several_aliases_are_a_list_or_separated_by_commas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = toml_file(tmp_path, "[model]\nalias = ['a', '/b/c d ']\n")
    assert model_ids(load_settings(path).model) == ("a", "/b/c d")
    monkeypatch.setenv("CHUNKCACHE_MODEL__ALIAS", "x, y")
    assert model_ids(load_settings(path).model) == ("x", "y")
    assert model_ids(load_settings(model={"name": "/m/tiny/", "alias": " "}).model) == ("tiny",)


# ------------------------------------------------------------------ what is wrong


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"server": {"port": 70000}}, ["server.port: got 70000", "less than or equal to 65535",
                                      "CHUNKCACHE_SERVER__PORT"]),
        ({"repair": {"policy": "best"}}, ["repair.policy: got 'best'", "'question'"]),
        ({"repair": {"budget": 1.5}}, ["repair.budget: got 1.5", "less than or equal to 1"]),
        ({"engine": {"step_tokens": "many"}}, ["engine.step_tokens: got 'many'", "integer"]),
        ({"server": {"prot": 80}}, ["server.prot: got 80, there is no such setting",
                                    "server.port is the nearest; the names are host, port,"]),
        ({"top_k": 3}, ["top_k: got 3, there is no such", "retrieval.top_k is the nearest"]),
        ({"sever": {"port": 80}}, ["sever: got {'port': 80}, there is no such setting",
                                   "server is the nearest", "model, engine, repair"]),
        ({"server": 3}, ["server: got 3"]),
        ({"server": {"public_url": "ftp://x"}}, ["server.public_url: got 'ftp://x'"]),
        ({"home": 3}, ["home: got 3"]),
        ({"home": ""}, ["home: got ''", "must not be empty", "CHUNKCACHE_HOME"]),
        ({"model": {"num_threads": 1 << 20}}, ["model.num_threads: got 1048576"]),
        ({"model": {"alias": "a,,b"}}, ["model.alias: got 'a,,b'", "none of them empty"]),
        ({"model": {"alias": ["a", "a"]}}, ["model.alias: got ['a', 'a']", "twice"]),
        ({"model": {"alias": "a:plain"}}, ["model.alias: got 'a:plain'", "end in :plain"]),
        ({"model": {"alias": 3}}, ["model.alias: got 3", "string"]),
        ({"retrieval": {"top_k": -1}}, ["retrieval.top_k: got -1", "equal to 0"]),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named_with_its_value_and_what_is_allowed(
    arguments: dict[str, Any], said: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(**arguments)
    for part in said:
        assert part in str(caught.value)


@pytest.mark.parametrize("value", [10**22, math.inf, math.nan, -math.inf], ids=str)
def test_no_number_is_without_end(value: float) -> None:
    taken = []
    for section, model in SECTIONS.items():
        for field, about in model.model_fields.items():
            if about.annotation in (int, float, int | None, float | None):
                with suppress(ConfigError):
                    load_settings(**{section: {field: value}})
                    taken.append(f"{section}.{field}")
    assert taken == []


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = toml_file(tmp_path, "[server]\nprot = 1\n")
    monkeypatch.setenv("CHUNKCACHE_REPAIR__BUDGET", "lots")
    with pytest.raises(ConfigError) as caught:
        load_settings(path, retrieval={"top_k": -1})
    for part in ("server.prot: got 1", "repair.budget: got 'lots'", "retrieval.top_k: got -1"):
        assert part in str(caught.value)


@pytest.mark.parametrize(("overlap", "chunk"), [(256, 256), (300, 256), (8, 8)])
def test_an_overlap_must_be_less_than_a_chunk(overlap: int, chunk: int) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(retrieval={"overlap_tokens": overlap, "chunk_tokens": chunk})
    assert f"retrieval.overlap_tokens: got {overlap}" in str(caught.value)
    assert f"less than retrieval.chunk_tokens, which is {chunk}" in str(caught.value)
    load_settings(retrieval={"overlap_tokens": chunk - 1, "chunk_tokens": chunk})


def test_a_wrong_chunk_size_is_not_blamed_on_the_overlap() -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(retrieval={"overlap_tokens": 5, "chunk_tokens": 3})
    assert "retrieval.chunk_tokens: got 3" in str(caught.value)
    assert "overlap_tokens" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[server\nport = 1", "is not TOML"),
        (b"\xff\xfe", "is not TOML"),
        (b"server = 1\n[server]\nport = 1", "is not TOML"),
    ],
)
def test_a_file_that_is_not_toml_is_an_error_with_its_name(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"config: .*bad\.toml {said}"):
        load_settings(path)


def test_a_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config: cannot read .*none\.toml: No such file"):
        load_settings(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot read"):
        load_settings(tmp_path)


# ------------------------------------------------------------------ paths


def test_a_tilde_means_home_wherever_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    toml_file(tmp_path, "cache = '~/c'\n[server]\napi_keys_file = '~/keys'\n")
    monkeypatch.setenv("CHUNKCACHE_HOME", "~/h")
    loaded = load_settings(Path("~/chunkcache.toml"))
    assert (loaded.home, loaded.cache) == (tmp_path / "h", tmp_path / "c")
    assert loaded.server.api_keys_file == tmp_path / "keys"
    assert load_settings(home="~nobody9/x").home == Path("~nobody9/x")  # no such user: as it is


def test_home_and_cache_are_the_users_own_by_default() -> None:
    loaded = load_settings()
    assert loaded.home.name == loaded.cache.name == "chunkcache"
    assert loaded.home != loaded.cache


# ------------------------------------------------------------------ the tree as a whole


def test_settings_cannot_be_changed_not_even_in_place() -> None:
    loaded = load_settings()
    with pytest.raises(ValidationError, match="frozen"):
        loaded.home = Path("/")
    for name in SECTIONS:
        section = getattr(loaded, name)
        for field, value in section:
            with pytest.raises(ValidationError, match="frozen"):
                setattr(section, field, value)
            assert isinstance(hash(value), int), f"{name}.{field} can be changed in place"


@pytest.mark.parametrize("name", [*SECTIONS, ""])
def test_every_field_says_what_it_means(name: str) -> None:
    fields: dict[str, FieldInfo] = (SECTIONS[name] if name else Settings).model_fields
    for field, info in fields.items():
        assert info.description or field in SECTIONS, f"{name}.{field} has no description"


def test_what_was_written_out_is_read_back(tmp_path: Path) -> None:
    """Every default can be said in TOML."""
    dumped = load_settings().model_dump(mode="json", exclude_none=True)
    lines = [f"{k} = {json.dumps(v)}" for k, v in dumped.items() if not isinstance(v, dict)]
    for section, values in dumped.items():
        if isinstance(values, dict):
            lines += [f"[{section}]", *(f"{k} = {json.dumps(v)}" for k, v in values.items())]
    path = toml_file(tmp_path, "\n".join(lines))
    assert tomllib.loads(path.read_text()) == dumped
    assert load_settings(path) == load_settings()


def test_every_repair_policy_that_can_be_set_exists() -> None:
    for name in get_args(RepairPolicyName):
        loaded = load_settings(repair={"policy": name})
        assert policy_named(loaded.repair.policy, loaded.repair).name == name


# ------------------------------------------------------------------ shared tiers


@pytest.mark.parametrize(
    ("store", "named"),
    [
        ({"shared": "http://cache:6379"}, "store.shared: got 'http://cache:6379'"),
        ({"object": "/mnt/kv", "share_secret": "x" * 16}, "store.object: got '/mnt/kv'"),
        ({"object": "file://mnt/kv", "share_secret": "x" * 16}, "with three slashes"),
        ({"shared": "redis://cache"}, "store.share_secret: got ''. Must be set"),
        ({"object": "s3://bucket/kv"}, "openssl rand -hex 16"),
        ({"remote_timeout_s": 0}, "store.remote_timeout_s: got 0"),
    ],
)
def test_what_is_wrong_with_a_shared_tier_is_said(store: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_settings(store=store)
    assert named in raised.value.message


def test_secrets_and_passwords_are_not_repeated_in_messages_and_logs() -> None:
    for store in (
        {"shared": "redis://cache", "share_secret": "hush"},
        {"shared": "http://user:hush@cache", "share_secret": "x" * 16},
    ):
        with pytest.raises(ConfigError) as raised:
            load_settings(store=store)
        assert "hush" not in raised.value.message
    right = {"shared": "redis://:hush@cache", "share_secret": "hush" * 4}
    assert "hush" not in repr(load_settings(store=right))
