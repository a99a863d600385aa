"""Settings: one frozen tree, read from a TOML file, then `CHUNKCACHE_*` variables, then arguments.

Every field says its unit in its name. Nested fields: `CHUNKCACHE_STORE__HOST_CAPACITY_BYTES`.
No field is a list or a dictionary: nothing in a frozen section can be changed in place, and merging
is a matter of sections and scalars only. A name that no field has is an error wherever it is said;
`setting_names.py` knows the variables that begin alike and are somebody else's.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import platformdirs
from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict, SettingsError

from chunkcache.codec_spec import CODEC_NAMES, parse_codec
from chunkcache.cold_settings import ColdSettings, why_not_beside
from chunkcache.errors import ConfigError
from chunkcache.policy_names import PassageOrder, RepairPolicyName
from chunkcache.section import GIB, MIB, Section, UserPath, expanded
from chunkcache.server_settings import ServerSettings
from chunkcache.setting_names import nearest, unknown_variables, variable_of

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

PLAIN = ":plain"
"""What follows a decoder's id to name the same model without retrieval."""
EMBEDDED_MODEL = "embedded:smollm2-135m-instruct"
EMBEDDED_EMBEDDER = "embedded:all-minilm-l6-v2"
_WHO_CALLS = re.compile(r"://[^/\s@]*@")  # user and password in an address


class ModelSettings(Section):
    """Which decoder answers, and how it is run."""

    name: str = Field(EMBEDDED_MODEL, description="hub id, local folder, or embedded:NAME")
    alias: str = Field(
        "",
        description="ids that clients name, the first by default: separated by commas, or a list; "
        "empty means derived from name",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 on GPUs and CPUs with native bf16, else float32"
    )
    weights: Literal["auto", "int8"] = Field(
        "auto",
        description="int8: products with weights rounded to 8 bits, on a CPU; another model than "
        "auto's, with chunk KV of its own",
    )
    longrope: Literal["short", "long"] = Field(
        "short",
        description="which of a longrope model's two sets of angles all prompts get: short ends at "
        "its original length; long reaches its whole length, and short prompts get those angles "
        "too; each has chunk KV of its own",
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N")
    num_threads: int = Field(
        0, ge=0, le=1024, description="torch threads on CPU; 0 leaves torch's choice"
    )
    gate: Literal["on", "off"] = Field(
        "on",
        description="check reuse against full prefill on first load; off disables reuse checks",
    )

    @field_validator("alias", mode="before")
    @classmethod
    def _list_as_text(cls, alias: Any) -> Any:
        texts = isinstance(alias, list) and all(isinstance(name, str) for name in alias)
        return ",".join(alias) if texts else alias

    @field_validator("alias")
    @classmethod
    def _names_apart(cls, alias: str) -> str:
        names = [name.strip() for name in alias.split(",")]
        if not alias.strip():
            return ""
        if "" in names or len(set(names)) < len(names):
            raise ValueError("Must be ids separated by commas, none of them empty or twice there")
        if any(name.endswith(PLAIN) for name in names):
            raise ValueError(f"Must not end in {PLAIN}, which every id has a variant with")
        return ",".join(names)


class EngineSettings(Section):
    """The running batch: device KV, step size, limits."""

    kv_capacity_bytes: int = Field(
        512 * MIB, ge=MIB, description="device KV of requests' own rows and of exact prefixes"
    )
    chunk_capacity_bytes: int = Field(
        0,
        ge=0,
        description="device KV of chunks, one copy for all requests; 0: on a CPU "
        "store.host_capacity_bytes, else as much as kv_capacity_bytes",
    )
    chunk_pages: Literal["raw", "int8", "int4"] = Field(
        "raw",
        description="number type of chunk KV on the device; int8 takes half to a quarter of the "
        "memory, int4 a third to a sixth, and no chunk is exact any more; int4 is for a GPU: on a "
        "CPU attention over it is slow",
    )
    page_tokens: Literal[8, 16, 32, 64] = Field(32, description="tokens in a page of KV")
    step_tokens: int = Field(512, ge=16, description="rows computed in one step, decode rows first")
    max_running: int = Field(16, ge=1, description="requests decoded together")
    queue_limit: int = Field(64, ge=1, description="waiting requests before 429")
    max_new_tokens_default: int = Field(
        1024,
        ge=1,
        description="of an answer when the request names no limit, or what the prompt leaves room "
        "for; their KV is set aside when the request begins",
    )
    prefix_cache: bool = Field(True, description="share pages of exact prefixes between requests")
    overflow: Literal["error", "drop"] = Field(
        "error", description="prompt longer than the context: refuse, or drop lowest-ranked chunks"
    )


class RepairSettings(Section):
    """What is recomputed when chunks are reused, unless the request says otherwise."""

    policy: RepairPolicyName = Field("question", description="which rows are chosen")
    budget: float = Field(0.15, ge=0.0, le=1.0, description="share of reused rows recomputed")
    cfo_alpha: float | None = Field(
        None,
        gt=0.0,
        le=1.0,
        description="α of Cache-Craft's fix overhead; empty: the calibrated one, else 0.4",
    )
    first_k_tokens: int = Field(32, ge=1, description="EPIC: rows per chunk, within the budget")


def _canonical_codec(text: str) -> str:
    return str(parse_codec(text))


class StoreSettings(ColdSettings):
    """Tiers below the device."""

    host_capacity_bytes: int = Field(
        1 * GIB,
        ge=0,
        description="chunk KV held in memory, that of running requests included; on a CPU 0 means "
        "that no chunk is reused",
    )
    disk_capacity_bytes: int = Field(
        8 * GIB, ge=0, description="chunk KV held in LMDB; 0 = no disk"
    )
    quota_bytes: tuple[Annotated[str, Field(pattern=r"^.+=[0-9]+$")], ...] = Field(
        (), description="TENANT=BYTES: what a tenant may hold in each tier; others have no limit"
    )
    sync_interval_s: float = Field(5.0, gt=0, description="background fsync of LMDB")
    write_queue_limit: int = Field(
        64, ge=1, description="records that may wait to be written, for each tier below memory"
    )
    write_queue_bytes: int = Field(
        256 * MIB, ge=MIB, description="memory of records that wait to be written, for each tier"
    )
    codec: Annotated[str, AfterValidator(_canonical_codec)] = Field(
        "raw",
        validate_default=True,
        description="how records are coded below memory, with parameters: "
        f"{', '.join(CODEC_NAMES)}. "
        "All but raw and zstd over raw round: what is read through them is repaired, never exact. "
        "docs/concepts/store.md says what each costs",
    )
    shared: str = Field(
        "",
        pattern=r"^$|^(redis|rediss|valkey|valkeys|unix)://",
        repr=False,  # it may hold a password
        description="a Valkey or Redis server below the disk, that several installations share: "
        "redis://HOST:PORT/DATABASE, rediss:// with TLS, unix://PATH; needs chunkcache[redis]",
    )
    object: str = Field(
        "",
        pattern=r"^$|^[a-z][a-z0-9+.-]*://",
        repr=False,
        description="an object store below that: file:///FOLDER, s3://BUCKET/FOLDER and what else "
        "fsspec knows; needs chunkcache[object-store]",
    )
    share_secret: str = Field(
        "",
        pattern=r"^$|^.{16,}$",
        validate_default=True,
        repr=False,
        description="installations with the same one, 16 characters or more, find each other's "
        "records in shared and object; a change makes all records there are unreachable",
    )
    remote_timeout_s: float = Field(
        2.0,
        gt=0,
        description="for reading a record from shared or object, beyond which it is a miss; "
        "writes, which nobody waits for, may take ten times as long",
    )
    lookup_log_bytes: int = Field(
        16 * MIB,
        ge=0,
        description="disk for the digests of the passages that requests looked up, from which "
        "chunkcache hitrate advises on sizes; no text; 0: none",
    )

    @field_validator("codec")
    @classmethod
    def _goes_with_the_cold_one(cls, codec: str, info: ValidationInfo) -> str:
        if problem := why_not_beside(info.data.get("cold_codec", ""), codec):
            raise ValueError(problem)
        return codec

    @field_validator("object")
    @classmethod
    def _folders_in_full(cls, url: str) -> str:
        if url.startswith("file:") and not url.startswith("file:///"):
            raise ValueError("Must be a whole path: file:///FOLDER, with three slashes")
        return url

    @field_validator("share_secret")
    @classmethod
    def _sharing_is_meant(cls, secret: str, info: ValidationInfo) -> str:
        if not secret and (info.data.get("shared") or info.data.get("object")):
            raise ValueError(
                "Must be set with store.shared and store.object: without it no installation finds "
                "another's records. Make one, the same for all of them: openssl rand -hex 16"
            )
        return secret

    @property
    def codecs(self) -> tuple[str, ...]:
        """Those whose records are read, beside all lossless ones."""
        return tuple(filter(None, (self.codec, self.cold_codec)))

    @property
    def quotas(self) -> dict[str, int]:
        """`quota_bytes` by tenant."""
        parts = (quota.rpartition("=") for quota in self.quota_bytes)
        return {tenant: int(size_bytes) for tenant, _, size_bytes in parts}


class RetrievalSettings(Section):
    """Splitting, embedding and search."""

    embedder: str = Field(EMBEDDED_EMBEDDER, description="hub id, local folder, or embedded:NAME")
    query_prompt: str | None = Field(
        None,
        max_length=2000,
        description="goes before queries when they are embedded; unset: as the model's folder "
        "says, else as its family (e5, bge, nomic, arctic, gte) wants it",
    )
    passage_prompt: str | None = Field(
        None, max_length=2000, description="the same for passages; a change embeds them all again"
    )
    chunk_tokens: int = Field(256, ge=8, le=4096, description="largest chunk, in model tokens")
    overlap_tokens: int = Field(0, ge=0, description="tokens shared by neighbouring chunks")
    top_k: int = Field(
        4, ge=0, le=64, description="chunks put in the prompt; 0: none unless a request asks"
    )
    index: Literal["flat", "hnsw"] = Field("flat", description="vector index; flat is exact")
    mode: Literal["hybrid", "vector", "lexical"] = Field("hybrid", description="what is searched")
    order: PassageOrder = Field(
        "relevance", description="of passages in the prompt; cache_friendly: shares exact prefixes"
    )
    match_messages: bool = Field(
        True,
        description="recognise known passages in the messages of clients that bring their own, "
        "and serve them from the cache",
    )
    learn_messages: bool = Field(
        False,
        description="text that comes a second time in messages is a passage too: for clients whose "
        "documents were never ingested. Instructions and examples that come again become "
        "approximate as well",
    )
    match_capacity_bytes: int = Field(
        256 * MIB, ge=MIB, description="memory of what passages are recognised by, of all tenants"
    )
    max_file_bytes: int = Field(64 * MIB, ge=1, description="larger files are reported and skipped")

    read_memory_bytes: int = Field(
        2 * GIB,
        ge=64 * MIB,
        description="memory that reading one pdf or office file may take (address space; Linux)",
    )
    read_cpu_s: int = Field(
        60, ge=1, description="processor time that reading one pdf or office file may take"
    )

    @field_validator("overlap_tokens")
    @classmethod
    def _overlap_is_part_of_a_chunk(cls, overlap: int, info: ValidationInfo) -> int:
        chunk = info.data.get("chunk_tokens", overlap + 1)  # absent when it is wrong itself
        if overlap >= chunk:
            raise ValueError(f"Must be less than retrieval.chunk_tokens, which is {chunk}")
        return overlap


class PromptSettings(Section):
    """The fixed words of the prompt."""

    system: str = Field(
        "You answer questions from the documents given. If they do not contain the answer, say so.",
        description="system text, before the documents",
    )
    documents_in: Literal["system", "user"] = Field(
        "system", description="documents after the system text, or opening the user turn"
    )
    born_after: Literal["head", "passages"] = Field(
        "passages",
        description="what chunk KV is made after: the head alone (the first chunk of a prompt is "
        "then exact), or the head and fixed unrelated passages (all chunks drift several times "
        "less)",
    )


class Settings(BaseSettings):
    """All settings. Frozen: a running service never changes them."""

    model_config = SettingsConfigDict(
        env_prefix="CHUNKCACHE_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    home: UserPath = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("chunkcache", appauthor=False)),
        description="catalog, indexes and the LMDB store live here",
    )
    cache: UserPath = Field(
        default_factory=lambda: Path(platformdirs.user_cache_dir("chunkcache", appauthor=False)),
        description="converted models and gate verdicts; safe to delete",
    )
    model: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    repair: RepairSettings = RepairSettings()
    store: StoreSettings = StoreSettings()
    retrieval: RetrievalSettings = RetrievalSettings()
    prompt: PromptSettings = PromptSettings()
    server: ServerSettings = ServerSettings()


def load_settings(path: Path | None = None, **overrides: Any) -> Settings:
    """Settings from an optional TOML file, the environment, and keyword overrides (strongest last).

    Args:
        path: a TOML file with the sections of `Settings`; a missing file is an error.
        overrides: nested dictionaries, e.g. `store={"disk_capacity_bytes": 0}`.

    Raises:
        ConfigError: naming the field, the value and what is allowed.
    """
    from_file = {} if path is None else _read_toml(expanded(path))
    if problems := unknown_variables(os.environ, Settings):
        raise ConfigError("settings: " + " ".join(problems))
    try:
        # raw, because what a variable says may be right only beside what the file says
        from_environment = EnvSettingsSource(Settings)()
        return Settings(**_merge(_merge(from_file, from_environment), overrides))
    except SettingsError as error:
        raise ConfigError(f"settings: {error}: {error.__cause__}") from error
    except ValidationError as error:
        raise ConfigError("settings: " + " ".join(map(_explain, error.errors()))) from error


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config: cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config: {path} is not TOML: {error}") from error


def _explain(problem: ErrorDetails) -> str:
    """Field, value, limit, hint of one thing that is wrong."""
    location = [str(part) for part in problem["loc"]]
    value = _WHO_CALLS.sub("://…@", repr(problem["input"]))
    if location[-1] == "share_secret" and problem["input"]:
        value = "one of other characters or another length"
    got = f"{'.'.join(location)}: got {value}"
    if problem["type"] == "extra_forbidden":
        owner: Any = (
            Settings if len(location) == 1 else Settings.model_fields[location[0]].annotation
        )
        like = nearest(".".join(location), Settings)
        names = ", ".join(owner.model_fields)
        return (
            f"{got}, there is no such setting. Hint: {like} is the nearest; the names are {names}."
        )
    limit = problem["msg"].removeprefix("Value error, ")
    variable = variable_of(".".join(location))
    return f"{got}. {limit}. Hint: the file, {variable} and arguments set it, the last one wins."


def _merge(weak: dict[str, Any], strong: dict[str, Any]) -> dict[str, Any]:
    merged = dict(weak)
    for name, value in strong.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merge(merged[name], value) if both else value
    return merged
