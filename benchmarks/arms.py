"""Engines side by side: one process each, and only the one whose turn it is runs.

An idle arm is stopped (SIGSTOP), because an idle server may spin: vLLM's does. Before each of its
turns an arm answers a word of one token, untimed, so that none is timed while it wakes up.

- `ours`          this checkout
- `int8`          the same with `model.weights = "int8"` and `engine.chunk_pages = "int8"`
- `baseline`      an earlier commit, checked out beside
- `transformers`  plain `generate`, sdpa, in the number type of `ours`
- `vllm DTYPE`    vLLM's server, if `--vllm-python` names the python it is installed for
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from passages import Asked, Passages

from chunkcache.config import EMBEDDED_MODEL, Settings, load_settings
from chunkcache.engine.loading import choose_device, choose_dtype, model_ids
from chunkcache.engine.weights import resolve_model

ROOT = Path(__file__).resolve().parent.parent
OWN = ("ours", "int8", "baseline")
NAMES = (*OWN, "transformers", "vllm")
CLOSE_LIMIT_S = 60.0
WARM_TOGETHER = 7  # passages of one warming request
QUESTION = "What is the code of the mill? Answer with the code."
NEEDLE = "4711"


class Arm:
    """A child process that answers; stopped, except while it is told something."""

    def __init__(self, name: str, kind: str, settings: dict[str, Any], folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name.replace(' ', '-')}.log"
        checkout = Path(settings.get("checkout", ROOT))
        roots = [checkout, checkout / "kernels", checkout / "indexes"]
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(ROOT / "benchmarks" / "arm_child.py"), kind,
                 json.dumps(settings)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, roots))},
                start_new_session=True,
            )  # fmt: skip
        began = time.perf_counter()
        self.loaded = self._reply()
        self.start_s = time.perf_counter() - began
        if "refused" not in self.loaded:
            self._signal(signal.SIGSTOP)

    @property
    def refused(self) -> str | None:
        """Why it did not start."""
        return self.loaded.get("refused")

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The arm runs inside."""
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._signal(signal.SIGSTOP)

    def tell(self, told: dict[str, Any]) -> dict[str, Any]:
        """Tell it something, inside `turn`, and wait for the reply.

        Raises:
            RuntimeError: what went wrong in the arm, and where its log is.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(told) + "\n")
        self._process.stdin.flush()
        reply = self._reply()
        if "error" in reply:
            raise RuntimeError(f"arm {self.name}: {reply['error']}\n{self._last_words()}")
        return reply

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"arm {self.name}: its process ended\n{self._last_words()}")
        return json.loads(line)

    def _last_words(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])

    def _signal(self, number: int) -> None:
        os.killpg(self._process.pid, number)

    def close(self) -> None:
        """End it and all its processes."""
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        self._process.stdin.close()
        try:
            self._process.wait(CLOSE_LIMIT_S)
        except subprocess.TimeoutExpired:
            print(f"arm {self.name} did not end by itself and was killed", file=sys.stderr)
        try:
            self._signal(signal.SIGKILL)
        except ProcessLookupError:
            return  # nothing of its group is left
        self._process.wait()


class Arms:
    """The arms of one run that started, and why others did not."""

    def __init__(self, given: argparse.Namespace, passages: Passages, arms: list[Arm]) -> None:
        self.refused = {arm.name: arm.refused for arm in arms if arm.refused}
        self.by_name = {arm.name: arm for arm in arms if not arm.refused}
        self.passages = passages
        self._seed = given.seed
        self._word = passages.asked("Hello").told(1)

    @property
    def own(self) -> list[Arm]:
        """Those that are chunkcache."""
        return [arm for name, arm in self.by_name.items() if name in OWN]

    def ask(self, arm: Arm, asked: Asked, max_tokens: int, **options: Any) -> dict[str, Any]:
        """One timed answer. Raises `RuntimeError` when the arm did not read the same prompt."""
        with arm.turn():
            arm.tell(self._word)
            reply = arm.tell(asked.told(max_tokens, **options))
        if reply["prompt_tokens"] != len(asked.token_ids):
            raise RuntimeError(
                f"arm {arm.name}: got a prompt of {reply['prompt_tokens']} tokens, must be "
                f"{len(asked.token_ids)}"
            )
        return reply

    def warm(self, numbers: Sequence[int]) -> None:
        """Let chunkcache compute the records of these passages; others keep none."""
        for arm in self.own:
            with arm.turn():
                for start in range(0, len(numbers), WARM_TOGETHER):
                    some = numbers[start : start + WARM_TOGETHER]
                    arm.tell(self.passages.asked("What is said?", some).told(1, budget=0.0))

    def check(self) -> str | None:
        """Every arm must read what a passage says; a word about the first that does not."""
        mill = f"The code of the mill is {NEEDLE}. " * 3
        document = self.passages.documents[0].model_copy(update={"id": "mill", "text": mill})
        self.passages.documents.append(document)
        asked = self.passages.asked(QUESTION, [len(self.passages.documents) - 1])
        self.passages.documents.pop()
        for arm in self.by_name.values():
            text = self.ask(arm, asked, 16, mode="full")["text"]
            if NEEDLE not in text:
                return f"arm {arm.name} answered {text!r} where the passage says {NEEDLE}"
        return None

    def facts(self) -> dict[str, Any]:
        """What the JSON line says about the arms."""
        return {
            "passages_from": self.passages.source,
            "arms": {
                name: {**arm.loaded["facts"], "start_s": round(arm.start_s, 1)}
                for name, arm in self.by_name.items()
            },
            "refused": self.refused,
        }

    def in_turn(self, turn: int) -> list[Arm]:
        """The arms, each turn beginning with another."""
        arms = list(self.by_name.values())
        first = turn % len(arms)
        return arms[first:] + arms[:first]


def add_arguments(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """What benchmarks of several engines have in common. `names`: the arms this one may have."""
    parser.add_argument("--arms", nargs="+", choices=names, default=list(names))
    parser.add_argument("--baseline", default="41f2df7", help="commit of the arm of that name")
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="as model.name")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--set", default="squad", help="question set the passages are cut from")
    parser.add_argument("--rounds", type=int, default=5, help="measured; one more warms up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="append the JSON line to this file")
    if "vllm" in names:
        parser.add_argument("--vllm-python", help="python of an environment with vLLM for CPUs")
        parser.add_argument(
            "--vllm-dtype", nargs="+", default=["bfloat16", "float32"], help="an arm each"
        )


@contextmanager
def open_arms(
    given: argparse.Namespace, pool: int, tokens: int = 512, **sections: Any
) -> Iterator[Arms]:
    """Start the arms that were asked for, one after the other.

    Args:
        pool: passages of `tokens` tokens to draw from.
        sections: settings of chunkcache beside those all arms share.

    Raises:
        RuntimeError: an arm other than `int8` and `vllm` did not start.
    """
    signal.signal(signal.SIGTERM, leave)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings = load_settings(home=folder / "home", model={"name": given.model})
        passages = Passages(settings, given.set, tokens, pool)
        common = {
            "retrieval": {"chunk_tokens": tokens, "embedder": "hashing:64"},
            "store": {"disk_capacity_bytes": 0, "host_capacity_bytes": 6 * 2**30},
            **sections,
        }
        arms = []
        for name, kind, about in _wanted(given, settings, common, folder, stack):
            arm = Arm(name, kind, about, folder)
            arms.append(arm)
            if not arm.refused:
                stack.callback(arm.close)
            else:
                arm.close()
                print(f"no arm {name}: {arm.refused}", file=sys.stderr, flush=True)
                if name != "int8" and kind != "vllm":
                    raise RuntimeError(f"arm {name}: {arm.refused}")
        yield Arms(given, passages, arms)


def _wanted(
    given: argparse.Namespace, settings: Settings, common: dict[str, Any], folder: Path,
    stack: ExitStack,
) -> Iterator[tuple[str, str, dict[str, Any]]]:  # fmt: skip
    """Name, kind and settings of each arm that was asked for."""
    weights = str(resolve_model(given.model, settings.cache))
    for name in [n for n in given.arms if n in OWN]:
        checkout = ROOT
        if name == "baseline":
            checkout = stack.enter_context(checkout_of(given.baseline, folder / "checkout"))
        # a cache folder each: two builds need not agree about what is in it
        places = {"home": str(folder / name / "home"), "cache": str(folder / name / "cache")}
        engine, model = dict(common.get("engine", {})), {"name": weights, "dtype": given.dtype}
        if name == "int8":
            engine["chunk_pages"] = model["weights"] = "int8"
        opened = {**common, **places, "model": model, "engine": engine}
        yield name, "chunkcache", {"checkout": str(checkout), "open": opened}
    if "transformers" in given.arms:
        dtype = str(choose_dtype(given.dtype, choose_device("auto"))).removeprefix("torch.")
        yield "transformers", "transformers", {"model": weights, "dtype": dtype}
    if "vllm" in given.arms and given.vllm_python is None:
        print("no arm vllm: --vllm-python was not given", file=sys.stderr, flush=True)
    elif "vllm" in given.arms:
        for dtype in given.vllm_dtype:
            about = {"python": given.vllm_python, "model": weights, "dtype": dtype}
            yield f"vllm {dtype}", "vllm", about


@contextmanager
def checkout_of(commit: str, folder: Path) -> Iterator[Path]:
    """The files of a commit of this repository in a folder, for as long as this lasts."""
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--detach", "--quiet", str(folder), commit], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def leave(number: int, frame: FrameType | None) -> None:
    """End as an exception would, so that arms end too."""
    print(f"ended by signal {number}", file=sys.stderr)
    sys.exit(128 + number)


def model_name(given: argparse.Namespace) -> str:
    """The model as results name it."""
    return model_ids(load_settings(model={"name": given.model}).model)[0]


def commit_of(name: str) -> str:
    """The commit's own short name."""
    return subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", name],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
