import json
import subprocess
import sys
from pathlib import Path

from report import BASE_URL, MODEL, QUESTION, tried

with tried("benchmark, two requests"):
    data, results = Path("prompts.jsonl").resolve(), Path("results.json").resolve()
    data.write_text("\n".join(json.dumps({"prompt": f"{QUESTION} ({n})"}) for n in range(2)))
    asked = [
        sys.executable, "-m", "guidellm", "benchmark", "run", "--model", MODEL,
        "--target", BASE_URL.removesuffix("/v1"), "--profile", "synchronous",
        "--max-requests", "2", "--data", str(data), "--output-path", str(results),
        "--processor", "",
    ]  # fmt: skip
    done = subprocess.run(asked, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-200:]
    totals = json.loads(results.read_text())["benchmarks"][0]["metrics"]["request_totals"]
    assert totals["successful"] == 2, totals
