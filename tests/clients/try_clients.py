"""Tries real clients, each in an environment of its own, and writes down what came of it.

    python tests/clients/try_clients.py URL FOLDER [NAME ...]

URL is that of a running server (`http://127.0.0.1:8321`) which has read `tests/clients/corpus` and
nothing else: from these texts a small model answers in a line, where others let it write until its
tokens are over. For its JSON, which does so all the same, `engine.max_new_tokens_default=96` saves
hours on a busy machine. FOLDER is where environments are made and kept. Without names all of the
roster are tried. MODEL_FOLDER names a folder with the tokenizer of the served model, which the
benchmark of lmcache counts with. Writes docs/reference/clients.md; what is known of clients that
were not tried this time, or with another model, stays in it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import httpx
from roster import CLIENTS, Client

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "reference" / "clients.md"
INSTALL_TIMEOUT_S = 900
_PASSED_ON = ("PATH", "HOME", "LANG", "MODEL_FOLDER")
TRY_TIMEOUT_S = 900
HEAD = """# Clients

<!-- made by tests/clients/try_clients.py -->

Each in an environment of its own, with its own defaults, against `chunkcache serve` with the
embedded model, or the one named in brackets. What a model of 135M parameters writes is not judged,
but whether the client gets what it asked for. JSON is closed where the answer's tokens are nearly
over, and the answer says that it was cut (`finish_reason: length`), which some clients take for a
failure (instructor). A client that asks for any JSON (`json_object`) leaves the keys to the model;
dspy's `Predict` asks for a form of its own in words alone, which so small a model does not keep to.

| client | version | tried | verdict |
|---|---|---|---|
"""
ROW = re.compile(r"^\| (?P<client>[^|]+) \| [^|]+ \| (?P<tried>[^|]+) \| .* \|$", re.MULTILINE)
EMBEDDED = "smollm2-135m-instruct"
NAMED = re.compile(r"\[([^\]]+)\]$")  # at the end of what was tried: the model, if another one


def prepared(client: Client, folder: Path) -> list[str]:
    """The command that runs scripts in the client's environment, which is made if it is not there.

    Raises:
        CalledProcessError: a package could not be installed.
    """
    home = folder / re.sub(r"\W+", "-", client.name)
    done = home / "installed.json"
    if not done.exists() or json.loads(done.read_text()) != list(client.packages):
        home.mkdir(parents=True, exist_ok=True)
        if client.kind == "npm":
            install = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(home)]
        else:
            venv.create(home, with_pip=True, clear=True)
            install = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, *client.packages], check=True, timeout=INSTALL_TIMEOUT_S)
        done.write_text(json.dumps(client.packages))
    if client.kind == "pip":
        return [str(home / "bin" / "python")]
    for script in (HERE / "cases").glob("*.mjs"):  # node looks for packages beside the script
        (home / script.name).write_text(script.read_text(encoding="utf-8"), encoding="utf-8")
    return ["node"]


def served(url: str) -> dict[str, str]:
    """Ids of the models that answer and embed, by kind."""
    models = httpx.get(f"{url}/v1/models").json()["data"]
    return {model["chunkcache"]["kind"]: model["id"] for model in reversed(models)}


def tried(client: Client, folder: Path, url: str) -> list[tuple[str, str]]:
    """What was tried, and the verdict on each; a client that cannot be installed is one too."""
    ids = served(url)
    told = {
        "BASE_URL": f"{url}/v1", "MODEL": ids["chat"], "EMBEDDER": ids["embedding"],
        "OPENAI_API_KEY": "unused",
    }  # fmt: skip
    known = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    home = folder / re.sub(r"\W+", "-", client.name)
    script = (home if client.kind == "npm" else HERE / "cases") / client.script
    try:
        command = [*prepared(client, folder), str(script)]
    except subprocess.SubprocessError as error:
        return [("installing", f"fails: {error}"[:200])]
    with subprocess.Popen(
        command, env={**known, **told}, cwd=home, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as running:  # fmt: skip
        try:
            said, complained = running.communicate(timeout=TRY_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            running.kill()
            said, complained = running.communicate()
            complained += f"\nnot done after {TRY_TIMEOUT_S} s"
    lines = [json.loads(line[1:]) for line in said.splitlines() if line.startswith("@{")]
    found = [(line["tried"], line["verdict"]) for line in lines]
    if running.returncode:
        last = (complained.strip().splitlines() or ["no message"])[-1]
        found.append(("the script", f"ended with {running.returncode}: {last[:160]}"))
    return found


def write_page(name: str, rows: list[str], model: str = EMBEDDED) -> None:
    """The page with these rows of a client and a model, and what it had of the others."""
    kept: dict[str, list[str]] = {}
    for row in ROW.finditer(PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""):
        named = NAMED.search(row["tried"])
        if (row["client"], named[1] if named else EMBEDDED) != (name, model):
            kept.setdefault(row["client"], []).append(row[0])
    of_others = kept.get(name, [])
    kept[name] = [*rows, *of_others] if model == EMBEDDED else [*of_others, *rows]
    ordered = [line for client in CLIENTS for line in kept.get(client.name, [])]
    PAGE.write_text(HEAD + "\n".join(ordered) + "\n", encoding="utf-8")


def main() -> int:
    url, folder, *names = sys.argv[1:]
    model = served(url)["chat"]
    named = "" if model == EMBEDDED else f" [{model}]"
    for client in CLIENTS:
        if names and client.name not in names:
            continue
        rows = [
            f"| {client.name} | {client.version} | {what}{named} | {verdict.replace('|', '¦')} |"
            for what, verdict in tried(client, Path(folder), url)
        ]
        print("\n".join(rows), flush=True)
        write_page(client.name, rows, model)
    return 0


if __name__ == "__main__":
    sys.exit(main())
