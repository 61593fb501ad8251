"""Generate the Python code of the contract into client/sonde/v1, or check that it is what the contract says.

Run it with an interpreter that has the packages of ``proto/requirements.txt`` (``make proto`` prepares one in
``.venv-proto``). The generator is pinned to an old release on purpose: generated code refuses a protobuf or grpcio that
is older than the one it was made for, so the pin is the floor of what users may have installed.

    python proto/generate.py            write the files
    python proto/generate.py --check    change nothing; exit with 1 and name the files that differ, lack or are stale
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

PROTO_ROOT = Path(__file__).resolve().parent
OUTPUT_ROOT = PROTO_ROOT.parent / "client"
PACKAGE = Path("sonde/v1")
REQUIREMENTS = PROTO_ROOT / "requirements.txt"
INIT = '"""Generated from proto/sonde/v1; see proto/generate.py."""\n'


def require_pinned_generator() -> None:
    """Raise SystemExit unless this interpreter has exactly the packages of proto/requirements.txt."""
    for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines():
        requirement = line.partition("#")[0].strip()
        if not requirement:
            continue
        name, _, pinned = requirement.partition("==")
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed = "none"
        if installed != pinned:
            raise SystemExit(f"{name} {pinned} is needed to generate the code, found {installed}: run `make proto`")


def has_service(source: Path) -> bool:
    """Return whether a file of the contract defines a service; the gRPC code of one that does not would be empty."""
    return re.search(r"^service ", (PROTO_ROOT / source).read_text(encoding="utf-8"), re.MULTILINE) is not None


def public_imports(source: Path) -> list[Path]:
    """Return the files that a file of the contract imports publicly."""
    text = (PROTO_ROOT / source).read_text(encoding="utf-8")
    return [Path(name) for name in re.findall(r'^import public "(.+)";', text, re.MULTILINE)]


def names_passed_on(package: Path, source: Path) -> set[str]:
    """Return the lines by which the stub of a file passes on the names of its public imports, and of theirs."""
    stub = (package / f"{source.stem}_pb2.pyi").read_text(encoding="utf-8")
    own = set(re.findall(r"^from \S+_pb2 import (?!_)\w+ as (?!_)\w+\n", stub, re.MULTILINE))
    return own.union(*(names_passed_on(package, imported) for imported in public_imports(source)))


def complete_stub(package: Path, source: Path) -> None:
    """Let a stub pass on what its module does: mypy-protobuf leaves out the public imports of a public import."""
    path = package / f"{source.stem}_pb2.pyi"
    stub, lines = path.read_text(encoding="utf-8"), sorted(names_passed_on(package, source))
    if lines:
        at = stub.index("from sonde.v1.")
        kept = "".join(line for line in stub[at:].splitlines(keepends=True) if line not in lines)
        path.write_text(f"{stub[:at]}{''.join(lines)}{kept}", encoding="utf-8")


def generate(output_root: Path) -> None:
    """Write the package of generated code below ``output_root``."""
    sources = sorted(path.relative_to(PROTO_ROOT) for path in (PROTO_ROOT / PACKAGE).glob("*.proto"))
    package = output_root / PACKAGE
    package.mkdir(parents=True, exist_ok=True)
    # The plugins lie beside this interpreter, whose folder need not be on PATH.
    plugins = Path(sys.executable).parent
    protoc = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"--plugin=protoc-gen-mypy={plugins / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={plugins / 'protoc-gen-mypy_grpc'}",
        "--proto_path=.",
    ]
    messages = [f"--python_out={output_root}", f"--mypy_out=quiet:{output_root}"]
    services = [f"--grpc_python_out={output_root}", f"--mypy_grpc_out=quiet:{output_root}"]
    subprocess.run([*protoc, *messages, *map(str, sources)], cwd=PROTO_ROOT, check=True)
    subprocess.run([*protoc, *services, *map(str, filter(has_service, sources))], cwd=PROTO_ROOT, check=True)
    for source in sources:
        complete_stub(package, source)
    (package / "__init__.py").write_text(INIT, encoding="utf-8")


def read_files(package: Path) -> dict[str, bytes]:
    """Return the contents of every file of ``package`` by name, caches apart."""
    return {
        str(path.relative_to(package)): path.read_bytes()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def differences(expected: dict[str, bytes], found: dict[str, bytes]) -> list[str]:
    """Return one line for each file that is missing from ``found``, differs there, or should not be there."""
    lines = [f"missing: {name}" for name in expected.keys() - found.keys()]
    lines += [f"stale: {name}" for name in found.keys() - expected.keys()]
    lines += [f"differs: {name}" for name in expected.keys() & found.keys() if expected[name] != found[name]]
    return sorted(lines)


def main() -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(description="Generate the Python code of the contract.")
    parser.add_argument("--check", action="store_true", help="only compare with what is there")
    arguments = parser.parse_args()
    require_pinned_generator()
    target = OUTPUT_ROOT / PACKAGE
    with tempfile.TemporaryDirectory() as temporary:
        generate(Path(temporary))
        fresh = Path(temporary) / PACKAGE
        changed = differences(read_files(fresh), read_files(target))
        if arguments.check:
            for line in changed:
                print(f"client/{PACKAGE}: {line}; run `make proto`", file=sys.stderr)
            return 1 if changed else 0
        if changed:
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(fresh, target)
    for line in changed:
        print(f"client/{PACKAGE}: was {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
