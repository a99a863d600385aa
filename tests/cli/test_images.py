"""The server as the container images start it: their environment, their command, no engine."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

DOCKER = Path(__file__).parents[2] / "docker"
IMAGES = sorted(DOCKER.glob("Dockerfile.*"))


def last_stage(path: Path) -> str:
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    return text[text.rindex("\nFROM ") :]


def environment(path: Path) -> dict[str, str]:
    lines = re.findall(r"^ENV (.*)$", last_stage(path), re.MULTILINE)
    return dict(word.split("=", 1) for line in lines for word in shlex.split(line))


def words(path: Path, instruction: str) -> list[str]:
    (found,) = re.findall(rf"^{instruction} .*?(\[.*\])$", last_stage(path), re.MULTILINE)
    listed: list[str] = json.loads(found)
    return listed


@contextmanager
def started(image: Path, tmp_path: Path, options: list[str]) -> Iterator[str]:
    """The image's server on a free port, its volume in `tmp_path`; gives its address."""
    inside = {
        name: value.replace("/data", str(tmp_path)) for name, value in environment(image).items()
    }
    del inside["PATH"]
    program, *shared = words(image, "ENTRYPOINT") + words(image, "CMD")
    assert program == "chunkcache" and shared[-1] == "serve"
    command = [sys.executable, "-m", program, *shared[:-1], *options, "serve", "--port", "0"]
    child = subprocess.Popen(
        command, env={**os.environ, **inside}, stdout=subprocess.PIPE, text=True
    )
    with child:
        try:
            assert child.stdout is not None
            url = json.loads(child.stdout.readline())["url"]
            assert url.startswith("http://0.0.0.0:")
            yield url.removesuffix("/v1").replace("0.0.0.0", "127.0.0.1")
        finally:
            child.kill()


@pytest.fixture
def model_options(options: list[str]) -> list[str]:
    """The tiny model; home and cache are the image's own."""
    kept = zip(options[::2], options[1::2], strict=True)
    return [
        word
        for name, value in kept
        if name != "--home" and not value.startswith("cache=")
        for word in (name, value)
    ]


def test_the_images_differ_in_what_they_install_only() -> None:
    assert len(IMAGES) == 2
    for path in IMAGES:
        assert environment(path) == environment(IMAGES[0])
        for instruction in ("ENTRYPOINT", "CMD", "HEALTHCHECK"):
            assert words(path, instruction) == words(IMAGES[0], instruction)


def test_a_container_refuses_the_names_and_pages_of_strangers(
    tmp_path: Path, native: Path, model_options: list[str]
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "native").symlink_to(native)
    with started(IMAGES[0], tmp_path, model_options) as url, httpx.Client(base_url=url) as client:
        for host, status in {
            "127.0.0.1:8321": 200, "localhost:8321": 200, "chunkcache": 200, "192.168.1.7": 200,
            "evil.example": 403, "evil.example:8321": 403, "127.0.0.1.nip.io": 403,
        }.items():  # fmt: skip
            assert client.get("/v1/models", headers={"host": host}).status_code == status, host
        for headers in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}):
            posted = client.post(
                "/v1/files", headers=headers, files={"file": ("a.txt", b"x")},
                data={"purpose": "assistants"},
            )  # fmt: skip
            assert posted.status_code == 403
        assert client.get("/v1/files").json()["data"] == []
        check = [part.replace("8321", url.rpartition(":")[2]) for part in health_check()]
        assert subprocess.run(check, timeout=60).returncode == 0
        assert (tmp_path / "home").is_dir()


def health_check() -> list[str]:
    return [sys.executable, *words(IMAGES[0], "HEALTHCHECK")[1:]]


def test_compose_publishes_on_the_loopback_only() -> None:
    text = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
    ports = re.findall(r"ports: \[(.*)\]", text)
    assert ports and all(port.startswith('"127.0.0.1:') for port in ports)
