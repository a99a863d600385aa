import json
import subprocess
import sys
from pathlib import Path

from report import BASE_URL, MODEL, QUESTION, tried

data = Path("prompts.jsonl").resolve()
data.write_text("\n".join(json.dumps({"prompt": f"{QUESTION} ({n})"}) for n in range(2)))
for route in ("/v1/chat/completions", "/v1/completions", "/v1/responses"):
    with tried(f"run, two requests to {route}"):
        results = Path(f"results{route.replace('/', '-')}.json").resolve()
        results.unlink(missing_ok=True)
        target = BASE_URL.removesuffix("/v1")
        asked = [
            sys.executable, "-m", "guidellm", "run",
            "--backend", f"kind=openai_http,target={target},model={MODEL},request_format={route}",
            "--profile", "kind=synchronous", "--constraint", "kind=max_requests,count=2",
            "--data", f"kind=json_file,path={data}", "--output", f"kind=json,path={results}",
            "--disable-console",
        ]  # fmt: skip
        done = subprocess.run(asked, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-200:]
        totals = json.loads(results.read_text())["benchmarks"][0]["metrics"]["request_totals"]
        assert totals["successful"] == 2, totals
