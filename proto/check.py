"""Check the contract: its style, its comments, and that it breaks no caller of the main branch.

Runs ``buf lint``, ``buf format`` and ``buf breaking`` in proto/. The version that must not be broken is that of the
main branch, here or at the origin. Where neither is known, as in a shallow clone of another branch, it is that of the
latest commit there is; outside a git repository the comparison is left out. Which it was is printed.
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
MAIN_BRANCHES = ("origin/main", "main")
ENTRY = "proto/sonde/v1/inspection.proto"
"""The one file that every version of the contract has; the others are its parts."""


def git(*arguments: str) -> bytes | None:
    """Return what git prints, or None where it fails or is not installed."""
    # The owner of a checkout in CI is often not the user who runs it; nothing but objects is read here.
    command = ["git", "-c", "safe.directory=*", "-C", str(ROOT), *arguments]
    try:
        return subprocess.run(command, check=True, capture_output=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def git_lines(*arguments: str) -> list[str]:
    """Return the lines that git prints; raise SystemExit where it fails."""
    output = git(*arguments)
    if output is None:
        raise SystemExit(f"contract: git {' '.join(arguments)} fails")
    return output.decode().splitlines()


def commit_with_contract(reference: str) -> str | None:
    """Return the commit that ``reference`` names if the contract is in it."""
    commit = git("rev-parse", "--verify", "--quiet", f"{reference}^{{commit}}")
    if commit is None or git("cat-file", "-e", f"{reference}:{ENTRY}") is None:
        return None
    return commit.decode().strip()


def baselines() -> dict[str, str]:
    """Return the commits that the contract is compared with, by commit with the name to print."""
    found = {commit: branch for branch in MAIN_BRANCHES if (commit := commit_with_contract(branch))}
    head = commit_with_contract("HEAD")
    if not found and head:
        found = {head: "the latest commit (no main branch here has the contract)"}
    # On the main branch itself the comparison would be with itself: its last change is looked at too.
    if head in found and (before := commit_with_contract("HEAD^")):
        found[before] = "the commit before"
    return found


def breaks(buf: str, commit: str) -> bool:
    """Return whether the contract breaks callers of the one in ``commit``."""
    with tempfile.TemporaryDirectory() as directory:
        for name in git_lines("ls-tree", "-r", "--name-only", commit, "proto"):
            copy = Path(directory) / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(git("cat-file", "blob", f"{commit}:{name}") or b"")
        return not run(buf, "breaking", "--against", str(Path(directory) / "proto"))


def run(buf: str, *arguments: str) -> bool:
    """Run buf in proto/ and return whether it is content; it prints what it finds."""
    return subprocess.run([buf, *arguments], cwd=PROTO, check=False).returncode == 0


def main() -> int:
    """Run every check; return the exit status."""
    installed = Path(sysconfig.get_path("scripts")) / "buf"
    buf = str(installed) if os.access(installed, os.X_OK) else "buf"
    good = [run(buf, "lint"), run(buf, "format", "--diff", "--exit-code")]
    compared = baselines()
    if not compared:
        print("contract: no commit to compare with, so `buf breaking` is left out")
    for commit, name in compared.items():
        print(f"contract: compared with {name}, {commit[:12]}")
        good.append(not breaks(buf, commit))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
