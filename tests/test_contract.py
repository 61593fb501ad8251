"""The contract's own tools: the checks of `make contract` and `make drift` have to notice what they are there for.

That the contract passes them is checked by `make test` directly; here each is shown a contract that it must refuse.
"""

import re
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from sonde.v1 import inspection_pb2

from docs.generate import contract
from tests.support.contract import imported_publicly

ROOT = Path(__file__).resolve().parent.parent
CONTRACT = Path("proto/sonde/v1")
FILES = imported_publicly(inspection_pb2.DESCRIPTOR)
METHODS = [one.name for one in inspection_pb2.TraceRequest.DESCRIPTOR.oneofs_by_name["method"].fields]
NEW_FILE = 'syntax = "proto3";\n\npackage sonde.v1;\n\n'
NOISE = r"(?:^//.*\n)+^message Noise \{\n(?:.*\n)*?^\}\n"


def load(path: str) -> ModuleType:
    specification = spec_from_file_location(Path(path).stem, ROOT / path)
    assert specification
    assert specification.loader
    module = module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def reading_order(project: Path) -> list[str]:
    return [file.name.rpartition("/")[2] for file in contract.reading_order(project / "proto")]


def git(directory: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=directory, check=True, capture_output=True)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with the contract on its main branch, and another branch checked out."""
    shutil.copytree(ROOT / "proto", tmp_path / "proto", ignore=shutil.ignore_patterns("__pycache__"))
    git(tmp_path, "init", "--initial-branch=main")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--message=The contract")
    git(tmp_path, "checkout", "-b", "other")
    return tmp_path


def check_contract(project: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "proto/check.py"], cwd=project, check=False, capture_output=True, text=True)


def rewrite(project: Path, pattern: str, replacement: str) -> None:
    """Replace the one place in all the files of the contract that matches."""
    found = re.compile(pattern, flags=re.MULTILINE)
    (path,) = (path for path in (project / CONTRACT).iterdir() if found.search(path.read_text(encoding="utf-8")))
    text, count = found.subn(replacement, path.read_text(encoding="utf-8"))
    assert count == 1, pattern
    path.write_text(text, encoding="utf-8")


def test_the_contract_as_it_is_passes(project: Path) -> None:
    result = check_contract(project)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "compared with main" in result.stdout


@pytest.mark.parametrize(
    ("pattern", "replacement", "complaint"),
    [
        (r"^  int32 top_k = 3;", "  int32 best = 3;", 'from "top_k" to "best"'),
        (r"^  int32 top_k = 3;", "  int64 top_k = 3;", "changed type"),
        (r"^  // Which activation\..*\n", "", "should have a non-empty comment"),
        (r"^  int32 top_k = 3;", "  int32   top_k = 3;", "-  int32   top_k = 3;"),
        (r"STACK_DECODER = 1", "DECODER = 1", "should be prefixed"),
    ],
    ids=["rename", "type", "comment", "format", "style"],
)
def test_a_change_for_the_worse_is_noticed(project: Path, pattern: str, replacement: str, complaint: str) -> None:
    rewrite(project, pattern, replacement)
    result = check_contract(project)
    assert result.returncode == 1
    assert complaint in result.stdout + result.stderr


def test_a_new_field_is_welcome(project: Path) -> None:
    rewrite(project, r"^  int64 max_answer_bytes = 3;", "  int64 max_answer_bytes = 3;\n  // New.\n  int32 new = 100;")
    assert check_contract(project).returncode == 0


def test_a_message_may_move_to_another_file(project: Path) -> None:
    found = re.search(NOISE, (project / CONTRACT / "edits.proto").read_text(encoding="utf-8"), re.MULTILINE)
    assert found
    rewrite(project, rf"{NOISE}\n", "")
    with (project / CONTRACT / "tensors.proto").open("a", encoding="utf-8") as other:
        other.write(f"\n{found[0]}")
    result = check_contract(project)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_message_may_not_go(project: Path) -> None:
    rewrite(project, rf"{NOISE}\n", "")
    rewrite(project, r"^    Noise noise = 7;", "    float noise = 7;")
    result = check_contract(project)
    assert result.returncode == 1
    assert 'message "Noise" was deleted from package' in result.stdout + result.stderr


def test_main_itself_is_compared_with_the_commit_before(project: Path) -> None:
    git(project, "checkout", "main")
    rewrite(project, r"^  int32 top_k = 3;", "  int32 best = 3;")
    git(project, "commit", "--all", "--message=A break")
    result = check_contract(project)
    assert result.returncode == 1
    assert "the commit before" in result.stdout


def test_a_detached_shallow_clone_is_compared_with_its_latest_commit(project: Path, tmp_path: Path) -> None:
    (project / "README").write_text("A second commit, so that there is something to cut off.\n", encoding="utf-8")
    git(project, "add", ".")
    git(project, "commit", "--message=More")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--depth=1", "--branch=other", "--single-branch", project.as_uri(), str(clone))
    git(clone, "checkout", "--detach")
    git(clone, "branch", "--delete", "--force", "other")
    result = check_contract(clone)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "no main branch here" in result.stdout
    rewrite(clone, r"^  int32 top_k = 3;", "  int32 best = 3;")
    assert check_contract(clone).returncode == 1


def test_without_a_repository_the_comparison_is_left_out_aloud(project: Path) -> None:
    shutil.rmtree(project / ".git")
    result = check_contract(project)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "left out" in result.stdout


@pytest.mark.parametrize(
    ("found", "lines"),
    [
        ({"a.py": b"1", "b.py": b"2"}, []),
        ({"a.py": b"1"}, ["missing: b.py"]),
        ({"a.py": b"1", "b.py": b"3"}, ["differs: b.py"]),
        ({"a.py": b"1", "b.py": b"2", "old_pb2.py": b""}, ["stale: old_pb2.py"]),
    ],
)
def test_drift_is_told_by_file(found: dict[str, bytes], lines: list[str]) -> None:
    assert load("proto/generate.py").differences({"a.py": b"1", "b.py": b"2"}, found) == lines


def test_generator_refuses_packages_it_was_not_pinned_to() -> None:
    # This environment has the newest protobuf, which is why it must not have the generator.
    with pytest.raises(SystemExit, match=r"grpcio-tools 1\.76\.0 is needed .* `make proto`"):
        load("proto/generate.py").require_pinned_generator()


def test_one_import_brings_the_whole_contract() -> None:
    files = {f"sonde/v1/{path.name}" for path in (ROOT / CONTRACT).iterdir()}
    assert {file.name for file in FILES} == files
    names = {name for file in FILES for name in (*file.message_types_by_name, *file.enum_types_by_name)}
    assert len(names) > 40
    assert [name for name in names if not hasattr(inspection_pb2, name)] == []
    stub = (ROOT / "client/sonde/v1/inspection_pb2.pyi").read_text(encoding="utf-8")
    assert names <= set(re.findall(r"^from \S+ import (\w+) as \1$", stub, re.MULTILINE))


def test_a_file_without_a_row_in_the_map_is_noticed(project: Path) -> None:
    assert reading_order(project)[0] == "inspection.proto"
    (project / CONTRACT / "unlisted.proto").write_text(NEW_FILE, encoding="utf-8")
    with pytest.raises(RuntimeError, match=r"expected a table of .*'unlisted\.proto'"):
        reading_order(project)


def test_a_new_method_needs_no_row_in_the_map(project: Path) -> None:
    before = reading_order(project)
    at = before.index("traces.proto") + 1
    assert before[at : at + len(METHODS)] == [f"{name}.proto" for name in METHODS]
    (project / CONTRACT / "new_method.proto").write_text(f"{NEW_FILE}message NewMethod {{}}\n", encoding="utf-8")
    rewrite(
        project,
        r"^    CircuitDiscovery circuit_discovery = 13;",
        "    CircuitDiscovery circuit_discovery = 13;\n    NewMethod new_method = 100;",
    )
    rewrite(project, r"^// A prompt, and the method", 'import public "sonde/v1/new_method.proto";\n\n\\g<0>')
    at += len(METHODS)
    assert reading_order(project) == [*before[:at], "new_method.proto", *before[at:]]


def test_no_field_is_a_64_bit_integer_without_need() -> None:
    """They are strings in JSON and BigInts in JavaScript: only what may pass 2^31 is one."""
    wide = {
        f"{message.name}.{field.name}"
        for file in FILES
        for message in file.message_types_by_name.values()
        for nested in (message, *message.nested_types)
        for field in nested.fields
        if field.type in {field.TYPE_INT64, field.TYPE_UINT64, field.TYPE_SINT64, field.TYPE_UINT32}
    }
    assert wide == {
        "ActivationSlice.offset",
        "CausalScrubbing.seed",
        "CausalTracing.seed",
        "Cost.answer_bytes",
        "Cost.tokens",
        "Cost.full_token_layers",
        "Cost.runs",
        "Cost.token_layers",
        "Generation.seed",
        "GetModelResponse.parameters",
        "LargestActivations.offset",
        "Limits.max_answer_bytes",
        "Limits.max_total_tokens",
        "Noise.seed",
    }
