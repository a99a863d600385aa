import os
import subprocess
import sys
from pathlib import Path

from report import BASE_URL, MODEL, QUESTION, tried

home = Path.cwd() / "llm-home"
home.mkdir(exist_ok=True)
(home / "extra-openai-models.yaml").write_text(
    f"- model_id: served\n  model_name: {MODEL}\n  api_base: {BASE_URL}\n"
)
known = {**os.environ, "LLM_USER_PATH": str(home)}
for what, options in {"prompt, streamed": [], "prompt": ["--no-stream"]}.items():
    with tried(what):
        asked = [sys.executable, "-m", "llm", "-m", "served", *options, QUESTION]
        done = subprocess.run(asked, env=known, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 and done.stdout.strip(), done.stderr[-200:]
