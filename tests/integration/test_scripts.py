"""The scripts a user meets first, without running what they install."""

import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

SCRIPTS = [
    "scripts/quickstart.sh",
    "scripts/test.sh",
    "scripts/check.sh",
    "scripts/compile_targets.sh",
    "scripts/environment.sh",
    ".ci/run",
]


@pytest.fixture
def checkout(root, tmp_path):
    """The scripts and what they read, elsewhere, with a Python whose pip only writes down what it is asked for."""
    shutil.copytree(root / "scripts", tmp_path / "scripts")
    shutil.copy(root / "setup.py", tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        "#!/usr/bin/env bash\n"
        f'if [ "$1" != -m ]; then exec "{sys.executable}" "$@"; fi\n'
        f'echo "$PWD $*" >>"{tmp_path}/asked"\n'
        'case "$2 $3" in ${FAKE_FAILS:-nothing}) echo "what went wrong"; exit 1 ;; esac\n'
    )
    python.chmod(0o755)
    return tmp_path


def call(script, *arguments, cwd, **environment):
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "VIRTUAL_ENV")} | environment
    command = ["bash", str(script), *arguments]
    return subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, check=False)


def asked(checkout, what):
    """The modules' command lines so far that start with `what`."""
    lines = (checkout / "asked").read_text().splitlines()
    return [line.removeprefix(f"{checkout} -m ") for line in lines if line.startswith(f"{checkout} -m {what}")]


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_sound(root, script):
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", "-x", script], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout == ""


def test_the_quickstart_installs_once_and_trains_from_any_folder(checkout, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for _ in range(2):
        done = call(
            checkout / "scripts/quickstart.sh",
            "--config.seed=3",
            cwd=elsewhere,
            VIRTUAL_ENV=str(checkout / "env"),
        )
        assert done.returncode == 0, done.stderr
    version = "311" if sys.version_info < (3, 12) else "312"
    (install,) = asked(checkout, "pip install")
    assert install.endswith(f"-c scripts/constraints-py{version}.txt -e .")
    assert asked(checkout, "positionbias") == ["positionbias.train --config configs/quickstart.py --config.seed=3"] * 2


def test_changed_pins_are_installed_anew_and_extras_contain_the_package(checkout):
    environment = {"cwd": checkout, "VIRTUAL_ENV": str(checkout / "env")}
    call("scripts/test.sh", "-k", "mask", **environment)
    call("scripts/quickstart.sh", **environment)
    assert [line.split()[-1] for line in asked(checkout, "pip install")] == [".[test]"]
    (tests,) = asked(checkout, "pytest")
    assert tests == "pytest -n 2 --dist worksteal -m not slow and not accelerator -k mask"
    with open(checkout / "setup.py", "a") as stream:
        stream.write("# changed\n")
    call("scripts/quickstart.sh", **environment)
    assert [line.split()[-1] for line in asked(checkout, "pip install")] == [".[test]", "."]


def test_a_failed_install_is_told_and_nothing_runs(checkout):
    done = call("scripts/quickstart.sh", cwd=checkout, VIRTUAL_ENV=str(checkout / "env"), FAKE_FAILS="pip?install")
    assert done.returncode == 1
    told, error = done.stderr.splitlines()
    assert told == "what went wrong"
    assert error.startswith("error: the package could not be installed")
    assert asked(checkout, "positionbias") == []


def test_a_red_check_fails_and_does_not_hide_the_others(checkout):
    environment = {"cwd": checkout, "VIRTUAL_ENV": str(checkout / "env")}
    assert call("scripts/check.sh", **environment).returncode == 0
    for red in ("ruff?check", "ruff?format", "mypy*"):
        assert call("scripts/check.sh", **environment, FAKE_FAILS=red).returncode == 1
        assert asked(checkout, "")[-3:] == ["ruff check .", "ruff format --check .", "mypy"]


def test_no_python_is_one_sentence(checkout):
    done = call("scripts/quickstart.sh", cwd=checkout, PYTHON="no_such_python")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: PYTHON=no_such_python is not a Python from 3.11 on that can make virtual environments."
    ]


@pytest.mark.parametrize("name", ["311", "312"])
def test_constraints_pin_what_setup_asks_for(root, name):
    pins = {}
    for line in (root / f"scripts/constraints-py{name}.txt").read_text().splitlines():
        if not line.startswith("#"):
            package, version = line.split("==")
            pins[re.sub(r"[-_.]+", "-", package).lower()] = version
    asked = (root / "setup.py").read_text()
    asked = re.sub(r"ORACLE = \[.*?\n\]", "", asked, flags=re.DOTALL)  # what an environment of its own gets
    wanted = re.findall(r'"([\w-]+)>=([\d.]+),<([\d.]+)"', asked)
    assert {"jax", "flax", "pytest", "ruff"} <= {package for package, _, _ in wanted}
    for package, low, high in wanted:
        pin = numbers(pins[package.replace("_", "-")])
        assert numbers(low) <= pin < numbers(high), package


def numbers(version):
    return [int(part) for part in version.split(".")]


def test_the_markers_of_the_scripts_exist(root):
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert [marker.partition(":")[0] for marker in settings["markers"]] == ["slow", "accelerator"]


@pytest.mark.parametrize("there", [True, False], ids=["with another Python", "without"])
def test_ci_tests_on_python_312_where_there_is_one_and_ends_with_the_default(root, checkout, there):
    shutil.copytree(root / ".ci", checkout / ".ci")
    found = checkout / "bin" / "python3.12"
    found.parent.mkdir()
    found.write_text(
        "#!/usr/bin/env bash\n"
        f"{'' if there else 'exit 1'}\n"
        f'if [ "$2" = venv ]; then mkdir -p "$3/bin" && cp "{checkout}/env/bin/python" "$3/bin/python"; exit; fi\n'
        f'exec "{sys.executable}" "$@"\n'
    )
    found.chmod(0o755)
    environment = {
        "cwd": checkout,
        "HOME": str(checkout),
        "PATH": f"{found.parent}:{os.environ['PATH']}",
        "VIRTUAL_ENV": str(checkout / "env"),
    }
    done = call(".ci/run", **environment)
    assert done.returncode == 0, done.stderr
    tests = "pytest -n 2 --dist worksteal -m not slow and not accelerator"
    assert asked(checkout, "pytest") == [tests] * (2 if there else 1)
    assert ("no python3.12 here" in done.stdout) == (not there)
    assert len(list(checkout.glob(".venv-*"))) == there
    assert call(".ci/run", **environment, FAKE_FAILS="ruff?check").returncode == 1
    assert asked(checkout, "")[-1] == tests


def test_compilers_for_chips_go_into_an_environment_of_their_own(checkout):
    shutil.copytree(checkout / "env", checkout / ".venv-targets")
    shutil.rmtree(checkout / "env")
    done = call(
        checkout / "scripts/compile_targets.sh",
        "--target",
        "v5e",
        cwd=checkout,
        PYTHON=sys.executable,
        VIRTUAL_ENV=str(checkout / "env"),
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[-1] for line in asked(checkout, "pip install")] == [".[targets]"]
    assert asked(checkout, "positionbias") == ["positionbias.kernels.compile_targets --target v5e"]


@pytest.mark.slow
def test_the_compilers_for_chips_take_the_attention_kernels(root):
    done = call(root / "scripts/compile_targets.sh", "--target", "v5e,h200", "--case", "gradient", cwd=root)
    if "could not be installed" in done.stderr or "no Python from 3.12 on" in done.stderr:
        pytest.skip("the compilers cannot be had here")
    assert done.returncode == 0, done.stderr
    assert "| `mosaic_tpu` | gradient | 6 of 6" in done.stdout
    assert "| `mosaic_gpu` | gradient | - | 4 of 4" in done.stdout
