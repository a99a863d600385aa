"""Schemathesis against a running server's own description, in an environment of its own.

python tests/server/fuzz_openapi.py URL FOLDER [OPTION ...]

FOLDER is where the environment is made and kept; options are passed on to `schemathesis run`. The
exit code is schemathesis's own: 0 if no check failed.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

SCHEMATHESIS = "schemathesis==4.32.5"
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance,response_headers_conformance,use_after_free,unsupported_method"
)
"""Not those on what is accepted: that a conversation ends with the user's turn, or that two fields
exclude each other, is said in words."""


def main() -> int:
    url, folder, *options = sys.argv[1:]
    home = Path(folder)
    if not (home / "bin" / "schemathesis").exists():
        venv.create(home, with_pip=True)
        install = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", SCHEMATHESIS]
        subprocess.run(install, check=True)
    asked = [
        str(home / "bin" / "schemathesis"), "run", f"{url}/openapi.json",
        "--phases", "examples,coverage,fuzzing,stateful", "--checks", CHECKS, "--seed", "1",
        "--request-timeout", "60", "--continue-on-failure", *options,
    ]  # fmt: skip
    return subprocess.run(asked, cwd=home).returncode


if __name__ == "__main__":
    sys.exit(main())
