"""One arm, in a process of its own: loads one model, then answers JSON lines on stdin, one by one.

    python benchmarks/arm_child.py KIND SETTINGS     (benchmarks/arms.py starts it)

Nothing of a checkout is imported but the public `ChunkCache`, so that the same file drives any
commit: which one is up to PYTHONPATH. Times are taken here, from before the request is given to
the engine (or posted to the server) to each piece of text and to the end.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Protocol

START_LIMIT_S = 900.0
_PR_SET_PDEATHSIG = 1


class Answers(Protocol):
    """A loaded model: `facts` about it, and what it is told to do."""

    facts: dict[str, Any]

    def answer(self, told: dict[str, Any]) -> dict[str, Any]:
        """Answer one prompt; see `timed`."""
        ...

    def close(self) -> None:
        """Let everything go."""
        ...


def timed(began: float, pieces: list[float], ended: float, **more: Any) -> dict[str, Any]:
    """The reply to `answer`: milliseconds from the beginning to the first piece and to the end."""
    return {
        "first_ms": (pieces[0] - began) * 1e3,
        "end_ms": (ended - began) * 1e3,
        "pieces": len(pieces),
        **more,
    }


class OwnEngine:
    """`ChunkCache` of whichever checkout PYTHONPATH names."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import torch

        import chunkcache

        where = Path(chunkcache.__file__).resolve().parent.parent
        if where != Path(settings["checkout"]).resolve():
            raise RuntimeError(f"chunkcache is imported from {where}, not {settings['checkout']}")
        self.cache = chunkcache.ChunkCache.open(**settings["open"])
        self.cache.load()
        self.facts = {
            "dtype": self.cache.runtime.model.geometry.dtype,
            "torch_threads": torch.get_num_threads(),
        }

    def answer(self, told: dict[str, Any]) -> dict[str, Any]:
        """Through the public `stream`."""
        began, pieces, last = time.perf_counter(), [], None
        for event in self.stream(told):
            if event.type == "delta":
                pieces.append(time.perf_counter())
            last = event
        ended = time.perf_counter()
        assert last is not None
        report = last.report
        return timed(
            began, pieces or [ended], ended, tokens=last.completion_tokens, text=last.text,
            prompt_tokens=report.prompt_tokens,
            reused_tokens=report.reused_tokens, recomputed_tokens=report.recomputed_tokens,
            computed_tokens=report.computed_tokens, reported_ttft_ms=report.timings.ttft_ms,
            tiers=sorted({str(s.tier) for s in report.spans if s.kind == "chunk"}),
        )  # fmt: skip

    def stream(self, told: dict[str, Any]) -> Any:
        """Events of one answer."""
        from chunkcache.protocol import GivenDocument

        documents = [GivenDocument(**document) for document in told["documents"]]
        return self.cache.stream(
            told["question"], documents=documents, max_tokens=told["max_tokens"], temperature=0.0,
            **told["options"],
        )  # fmt: skip

    def together(self, told: dict[str, Any]) -> dict[str, Any]:
        """Many answers at once; see `arm_together.py`."""
        from arm_together import run_together

        return run_together(self, told)

    def gauges(self) -> dict[str, float]:
        """Every gauge of the metrics that is not zero, by name and labels."""
        from prometheus_client.parser import text_string_to_metric_families

        families = text_string_to_metric_families(self.cache.metrics.render().decode())
        return {
            " ".join([sample.name, *sample.labels.values()]): sample.value
            for family in families
            if family.type == "gauge"
            for sample in family.samples
            if sample.value and not sample.name.endswith("_created")
        }

    def close(self) -> None:
        """Close the cache."""
        self.cache.close()


class Transformers:
    """Plain greedy `generate` on the same token ids."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._torch = torch
        self._tokenizer: Any = AutoTokenizer.from_pretrained(settings["model"])
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            settings["model"], dtype=getattr(torch, settings["dtype"]), attn_implementation="sdpa"
        ).eval()
        self.facts = {"dtype": settings["dtype"], "torch_threads": torch.get_num_threads()}

    def answer(self, told: dict[str, Any]) -> dict[str, Any]:
        """Exactly `max_tokens` tokens: the end of the answer is not allowed before."""
        clock = _TokenClock()
        ids = self._torch.tensor([told["token_ids"]])
        began = time.perf_counter()
        with self._torch.inference_mode():
            made = self._model.generate(
                ids, attention_mask=self._torch.ones_like(ids), do_sample=False, streamer=clock,
                max_new_tokens=told["max_tokens"], min_new_tokens=told["max_tokens"],
            )  # fmt: skip
        ended = time.perf_counter()
        new = made[0, ids.shape[1] :].tolist()
        return timed(
            began, clock.times[1:], ended, tokens=len(new), prompt_tokens=ids.shape[1],
            text=self._tokenizer.decode(new, skip_special_tokens=True),
        )  # fmt: skip

    def close(self) -> None:
        """The process ends."""


class _TokenClock:
    """A streamer of transformers that only looks at the clock; the prompt comes first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: object) -> None:
        """Something was added."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing more comes."""


class VllmServer:
    """vLLM's OpenAI server, of another environment, asked for the same token ids over HTTP."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import httpx

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = {
            **os.environ,
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        environment.pop("PYTHONPATH", None)
        command = [
            settings["python"], "-m", "vllm.entrypoints.openai.api_server",
            "--model", settings["model"], "--served-model-name", "served",
            "--dtype", settings["dtype"], "--host", "127.0.0.1", "--port", str(port),
            "--max-model-len", "8192", "--max-num-seqs", "4", "--enable-prefix-caching",
        ]  # fmt: skip
        # of our process group, so that it is stopped and continued with us
        self._server = subprocess.Popen(command, env=environment, preexec_fn=die_with_parent)
        # a new connection each time: one kept open might be closed while all this is stopped
        limits = httpx.Limits(max_keepalive_connections=0)
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600, limits=limits)
        self._wait_until_up(httpx.TransportError)
        self.facts = {"dtype": settings["dtype"], "vllm": _version(settings["python"])}

    def _wait_until_up(self, not_yet: type[Exception]) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            if self._server.poll() is not None:
                raise RuntimeError(f"the server ended with {self._server.returncode} at its start")
            try:
                if self._http.get("/health").status_code == 200:
                    return
            except not_yet:
                time.sleep(1.0)
        self.close()
        raise RuntimeError(f"the server did not start within {START_LIMIT_S:.0f} s")

    def answer(self, told: dict[str, Any]) -> dict[str, Any]:
        """Exactly `max_tokens` tokens: the end of the answer is ignored."""
        body = {
            "model": "served", "prompt": told["token_ids"], "max_tokens": told["max_tokens"],
            "temperature": 0, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        pieces, text, usage = [], "", {}
        began = time.perf_counter()
        with self._http.stream("POST", "/v1/completions", json=body) as response:
            response.raise_for_status()
            for line in response.iter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                if chunk["choices"]:
                    pieces.append(time.perf_counter())
                    text += chunk["choices"][0]["text"]
                usage = chunk.get("usage") or usage
        return timed(
            began, pieces, pieces[-1], text=text,
            tokens=usage["completion_tokens"], prompt_tokens=usage["prompt_tokens"],
        )  # fmt: skip

    def close(self) -> None:
        """End the server."""
        self._server.terminate()
        self._server.wait(30)


def _version(python: str) -> str:
    code = (
        "from importlib.metadata import packages_distributions as p, version as v; "
        "name = p()['vllm'][0]; print(name, v(name), 'torch', v('torch'))"
    )
    return subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def release_free() -> None:
    """Give back what the allocator keeps of freed memory, where it can: it would count as held."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def memory() -> dict[str, int]:
    """Resident bytes of this process, now and at most since the peak was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if line.startswith(("VmRSS", "VmHWM")))
    return {
        "rss_bytes": int(fields["VmRSS"].split()[0]) * 1024,
        "peak_bytes": int(fields["VmHWM"].split()[0]) * 1024,
    }


def reset_peak() -> None:
    """From now on the peak is that of what comes."""
    Path("/proc/self/clear_refs").write_text("5")


def die_with_parent() -> None:
    """This process ends when its parent does, even if it is stopped then."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _ingests(settings: dict[str, Any]) -> Any:
    from arm_ingest import Ingests

    return Ingests(settings)


KINDS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "chunkcache": OwnEngine,
    "transformers": Transformers,
    "vllm": VllmServer,
    "ingest": _ingests,
}


def serve(kind: str, settings: dict[str, Any], replies: IO[str]) -> None:
    """Load, say so, then do what the lines say until stdin ends.

    Whatever goes wrong is the reply; the other side decides what it means.
    """

    def reply(content: dict[str, Any]) -> None:
        replies.write(json.dumps(content) + "\n")
        replies.flush()

    try:
        arm = KINDS[kind](settings)
    except Exception as error:
        reply({"refused": f"{type(error).__name__}: {error}"})
        return
    release_free()
    reply({"facts": arm.facts, "memory": memory()})
    try:
        for line in sys.stdin:
            told = json.loads(line)
            try:
                reply(getattr(arm, told["do"])(told))
            except Exception as error:
                reply({"error": f"{type(error).__name__}: {error}"})
    finally:
        arm.close()


def main() -> None:
    """Keep stdout for replies: libraries that print do so to stderr."""
    die_with_parent()
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    kind, settings = sys.argv[1:]
    serve(kind, json.loads(settings), replies)


if __name__ == "__main__":
    main()
