"""Writes the software bill of materials of what is shipped, and checks it: CycloneDX JSON.

Usage: sbom.py PYTHON OUT. `PYTHON` is the interpreter of an environment with the product in it and
nothing else. Exit code 1 when a package of that environment is missing from the list.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

LIST = "import importlib.metadata as m; print(*{d.name for d in m.distributions()}, sep='\\n')"


def plain(name: str) -> str:
    """A package's name as indexes compare it (PEP 503)."""
    return name.lower().replace("_", "-").replace(".", "-")


def main(python: str, out: Path) -> int:
    """Make, validate against the CycloneDX schema, compare."""
    out.parent.mkdir(parents=True, exist_ok=True)
    make = [sys.executable, "-m", "cyclonedx_py", "environment", python]
    make += ["--pyproject", "pyproject.toml", "--output-reproducible", "--validate"]
    make += ["--output-format", "JSON", "--output-file", str(out)]
    subprocess.run(make, check=True)
    bill = json.loads(out.read_text())
    told = {plain(part["name"]): part.get("version", "") for part in bill["components"]}
    told[plain(bill["metadata"]["component"]["name"])] = ""
    there = subprocess.run([python, "-c", LIST], check=True, capture_output=True, text=True)
    missing = {plain(name) for name in there.stdout.split()} - told.keys()
    if missing:
        print(f"{out}: not listed: {', '.join(sorted(missing))}")
        return 1
    print(f"{out}: {len(told)} parts, each with its version")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
