"""Check what is installed: licences, the lock file, known vulnerabilities.

What needs a service that is not reachable is skipped and said so; what can be judged here fails the build.

    python .ci/audit.py [requirements.lock]
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

PERMISSIVE = re.compile(
    r"\b(MIT(-CMU|-0)?|BSD|Apache|ISC|PSF|Python Software Foundation|HPND|Unlicense|0BSD|Zlib|MPL|Mozilla)\b",
    re.I,
)  # MPL-2.0: its files stay under it, what uses them does not
COPYLEFT = re.compile(r"(?<!L)(?<!Lesser )\b(A?GPL|(Affero )?General Public License)", re.I)
BUILD_TOOLS = {"tdenoise", "pip", "setuptools", "wheel"}
# docutils builds the documents only. It names the GPL for one file for Emacs; the rest is in the public domain or BSD.
LOOKED_AT = {"docutils"}


def main() -> int:
    lock = Path(sys.argv[1] if len(sys.argv) > 1 else "requirements.lock")
    problems = [*licences(), *versions(lock), *hashes(lock), *vulnerabilities(lock)]
    for problem in problems:
        print(f"audit: {problem}")
    return 1 if problems else 0


def licences() -> list[str]:
    """Installed distributions that are not under a permissive licence."""
    found = []
    for distribution in metadata.distributions():
        about = distribution.metadata
        name = normal(about["Name"])
        classifiers = [c for c in about.get_all("Classifier", []) if c.startswith("License ::")]
        expression = about.get("License-Expression")
        # The old free text may be a whole licence, which names others.
        told = expression or " ".join([*classifiers, (about.get("License") or "").partition("\n")[0]])
        permissive = PERMISSIVE.search(told) and not (COPYLEFT.search(told) and " OR " not in told)
        if name not in BUILD_TOOLS | LOOKED_AT and not permissive:
            found.append(f"{name}: licence {told.strip()[:80]!r} is not known to be permissive")
    print(f"audit: licences of {len(list(metadata.distributions()))} distributions read")
    return found


def versions(lock: Path) -> list[str]:
    """Installed distributions of another version than the lock file's."""
    locked = {normal(m[1]): m[2] for m in re.finditer(r"^([\w.-]+)==([^\s;\\]+)", lock.read_text(), re.M)}
    found = []
    for distribution in metadata.distributions():
        name = normal(distribution.metadata["Name"])
        wanted = locked.get(name)
        if (
            name != "pip"
            and wanted is not None
            and wanted.partition("+")[0] != distribution.version.partition("+")[0]
        ):
            found.append(f"{name} {distribution.version} is installed, {lock} says {wanted}: run 'make lock'")
    for name in re.findall(r"^([\w.-]+)==[^\n]*\\?\n(?!    --hash)", lock.read_text(), re.M):
        found.append(f"{name} has no hash in {lock}")
    return found


def hashes(lock: Path) -> list[str]:
    """Does what the package index offers have the locked hashes?"""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--disable-pip-version-check"]
    command += ["--require-hashes", "--no-deps", "--retries", "0", "--timeout", "10", "-r", str(lock)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return skipped("hashes: the package index answers too slowly")
    if "DO NOT MATCH THE HASHES" in done.stderr.upper():
        return [done.stderr.strip()[-500:]]
    if done.returncode != 0:
        return skipped(f"hashes: the package index does not offer all of it ({last_line(done.stderr)})")
    print("audit: pip accepts the hashes")
    return []


def vulnerabilities(lock: Path) -> list[str]:
    """Known vulnerabilities, as far as the database can be reached and knows the packages."""
    command = [sys.executable, "-m", "pip_audit", "--require-hashes", "--disable-pip", "-r", str(lock)]
    command += ["--format", "json", "--timeout", "10", "--progress-spinner", "off"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        packages = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        return skipped("vulnerabilities: the database answers too slowly")
    except (ValueError, KeyError):
        return skipped(f"vulnerabilities: no answer from pip-audit ({last_line(done.stderr)})")
    # It ends with 0 where it knows nothing of a package.
    known = [package for package in packages if "vulns" in package]
    if known:
        print(f"audit: vulnerabilities of {len(known)} packages looked up")
    if len(known) < len(packages):
        skipped(f"vulnerabilities: the database does not tell of {len(packages) - len(known)} packages")
    return [
        f"{package['name']} {package['version']} has {found['id']}, which is mended in {found['fix_versions']}"
        for package in known
        for found in package["vulns"]
    ]


def skipped(why: str) -> list[str]:
    print(f"audit: SKIPPED {why}")
    return []


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1][-160:]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main())
