"""What is uploaded: its metadata, and that nothing is missing from it or too much."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from hatchling.build import build_wheel

from tests.release.conftest import Distributions
from tests.support.installation import ROOT


def tracked() -> set[str]:
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    return set(listed.split("\n")) - {""}


def test_the_index_would_take_it(distributions: Distributions) -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", distributions.sdist, distributions.wheel],
        check=False,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.count("PASSED") == 2


def test_the_sdist_is_the_checkout(distributions: Distributions) -> None:
    with tarfile.open(distributions.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names - {"PKG-INFO"} == tracked()


def test_the_wheel_from_the_sdist_is_the_wheel_from_the_checkout(distributions: Distributions, tmp_path: Path) -> None:
    def contents(wheel: Path) -> dict[str, int]:
        with zipfile.ZipFile(wheel) as archive:
            return {one.filename: one.CRC for one in archive.infolist()}

    built = tmp_path / build_wheel(str(tmp_path))
    assert contents(built) == contents(distributions.wheel)


def test_the_wheel_has_the_contract_and_none_of_the_tests(distributions: Distributions) -> None:
    with zipfile.ZipFile(distributions.wheel) as archive:
        names = archive.namelist()
        contract = {name: archive.read(name) for name in names if name.endswith(".proto")}
    proto = ROOT / "proto"
    assert contract == {str(path.relative_to(proto)): path.read_bytes() for path in proto.rglob("*.proto")}
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"sonde", "sonde_server"}
    assert [name for name in names if "test" in name.lower()] == []
