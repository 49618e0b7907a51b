"""Looks up what is shipped in the database of known vulnerabilities: pip-audit.

Usage: audit.py ENVIRONMENT. Exit code 1 when a package has a known vulnerability. Not every package
index has the database; packages that could not be looked up are told, and with AUDIT_REQUIRED=1
they are an error as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PRODUCT = "otel-anomaly"


def main(environment: Path) -> int:
    """Ask for every package of the environment."""
    (packages,) = environment.glob("lib/python3*/site-packages")
    command = [sys.executable, "-m", "pip_audit", "--path", str(packages), "--format", "json"]
    told = subprocess.run(
        [*command, "--progress-spinner", "off"], capture_output=True, text=True, check=False
    )
    try:
        found = json.loads(told.stdout)["dependencies"]
        found = [part for part in found if part["name"] != PRODUCT]
    except (ValueError, KeyError):
        print(f"pip-audit could not ask:\n{told.stderr.strip()}")
        return int(os.environ.get("AUDIT_REQUIRED", "0") != "0")
    unknown = [part["name"] for part in found if "skip_reason" in part]
    bad = [part for part in found if part.get("vulns")]
    for part in bad:
        for vulnerability in part["vulns"]:
            fixed = ", ".join(vulnerability["fix_versions"]) or "none yet"
            print(f"{part['name']} {part['version']}: {vulnerability['id']}, fixed in: {fixed}")
    looked_up = len(found) - len(unknown)
    print(f"{looked_up} packages looked up, {len(bad)} with known vulnerabilities")
    if unknown:
        print(f"NOT LOOKED UP, this index has no vulnerability data for: {', '.join(unknown)}")
    return int(bool(bad) or (bool(unknown) and os.environ.get("AUDIT_REQUIRED", "0") != "0"))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
