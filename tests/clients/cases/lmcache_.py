import json
import os
import subprocess
from pathlib import Path

from report import BASE_URL, MODEL, tried

home = Path.cwd()
link = home / MODEL  # it looks for a tokenizer by the name of the model
link.unlink(missing_ok=True)
link.symlink_to(os.environ["MODEL_FOLDER"])
samples = home / "samples.jsonl"
passages = [
    f"{name} is in the {room}. " * 20 for name, room in (("Tom", "kitchen"), ("Ann", "hall"))
]
samples.write_text(
    "\n".join(
        json.dumps({"question": f"Where is {name}?", "answers": [room], "contexts": passages})
        for name, room in (("Tom", "kitchen"), ("Ann", "hall"))
    )
)
workloads = {
    "long-doc-permutator": [
        "--ldp-num-contexts", "3", "--ldp-context-length", "256", "--ldp-num-permutations", "3",
        "--ldp-system-prompt-length", "64", "--ldp-max-output-length", "8",
    ],
    "rag-qa-quality": [
        "--rag-dataset", str(samples), "--rag-num-samples", "2", "--rag-doc-align-tokens", "64",
        "--rag-max-output-length", "16",
    ],
}  # fmt: skip
for workload, sizes in workloads.items():
    with tried(f"bench engine, {workload}"):
        results = home / workload
        results.mkdir(exist_ok=True)
        for old in results.iterdir():
            old.unlink()
        asked = [
            str(home / "bin" / "lmcache"), "bench", "engine", "--no-interactive", "--json",
            "--engine-url", BASE_URL.removesuffix("/v1"), "--model", MODEL, "--quiet",
            "--workload", workload, "--tokens-per-gb-kvcache", "40000",
            "--output-dir", str(results), *sizes,
        ]  # fmt: skip
        done = subprocess.run(asked, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, (done.stdout + done.stderr)[-200:]
        summary = json.loads((results / "bench_summary.json").read_text())["results"]
        assert summary["total_requests"] == summary["successful_requests"] > 1, summary
