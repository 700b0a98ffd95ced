"""The wheel, installed in a virtual environment of its own, with no file of the checkout at hand."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.common import ROOT, TINY

pytest.importorskip("hatchling", reason="needs: pip install -r requirements-dev.txt")
pytest.importorskip("pip")

OWN = {
    "projects/__init__.py": "open('ran', 'a').close()\n",
    "projects/adder/__init__.py": "raise SystemExit('this is no project of ours')\n",
    "projects/mine/data.py": """
from projects.adder.datamodule import AdderDataModule
from projects.mine.digits import DIGITS

class Sums(AdderDataModule):
    def __init__(self, batch_size=64, seed=0):
        super().__init__(DIGITS, batch_size=batch_size, seed=seed)
""",
    "projects/mine/digits.py": "DIGITS = 1\n",
    "conf/datamodule/sums.yaml": "_target_: projects.mine.data.Sums\nbatch_size: 8\nseed: ${seed}\n",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built without the network."""
    folder = tmp_path_factory.mktemp("dist")
    offline = ("--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", *offline, "-w", str(folder), str(ROOT)], check=True)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of executables of a virtual environment that the wheel is installed in."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    executables = folder / ("Scripts" if os.name == "nt" else "bin")
    python = ("--python", str(executables / "python"), "--disable-pip-version-check")
    subprocess.run(
        [sys.executable, "-m", "pip", *python, "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True
    )
    return executables


@pytest.fixture
def installed(environment: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command of that environment in a folder with a project of one's own."""
    for name, text in OWN.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    others = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")}  # torch and the rest

    def run(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        whole = [str(environment / command), *arguments]
        return subprocess.run(whole, cwd=tmp_path, env=others, capture_output=True, text=True)

    return run


def test_the_wheel_owns_no_other_top_level_name(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops - {"mingpt_lightning"} == {top for top in tops if top.endswith(".dist-info")}
    assert len(tops) == 2
    ours = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("projects/*/*.py")}
    assert {f"mingpt_lightning/{name}" for name in ours} <= {*names}
    assert len(ours) >= 6


@pytest.mark.slow
def test_a_project_of_ones_own_is_beside_ours(installed, tmp_path):
    conf = ("--config-dir", "conf", "datamodule=sums", "run_dir=run", *TINY)
    result = installed("mingpt-lightning", *conf)
    assert result.returncode == 0, result.stderr
    code = f"""
import sys
from mingpt_lightning.cli.main import main
for run in "run", {str(ROOT / "tests/fixtures/run_0_1_0")!r}:
    sys.argv = ["mingpt-lightning", "task=generate", f"checkpoint={{run}}", "prompt=3+4"]
    main()
"""
    result = installed("python", "-P", "-c", code)
    texts = result.stdout.splitlines()
    assert [text[:4] for text in texts] == ["3+4=", "3+4="], f"it, and a run of an old version: {result.stderr}"
    assert not (tmp_path / "ran").exists(), "what isn't on sys.path puts nothing in the place of ours"


@pytest.mark.slow
def test_a_package_that_hides_ours_does_not_in_python(installed, tmp_path):
    (tmp_path / "projects/adder/__init__.py").write_text("")
    code = """
import mingpt_lightning
import projects, projects.mine.data, projects.sort.datamodule
print(projects.__file__)
print(projects.sort.datamodule.__file__)
print(projects.mine.data.Sums.__mro__[1].__module__)
"""
    result = installed("python", "-c", code)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert (tmp_path / "ran").exists(), "the package of the working directory is what Python finds first"
    assert Path(lines[0]) == tmp_path / "projects/__init__.py"
    assert Path(lines[1]).parts[-4:] == ("mingpt_lightning", "projects", "sort", "datamodule.py")
    assert lines[2] == "projects.adder.datamodule"
