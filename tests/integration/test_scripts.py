"""The scripts a user meets first, without running what they install."""

import os
import re
import shlex
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
    "scripts/slurm.sh",
    "scripts/tpu_pod.sh",
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
    told = asked(checkout, "pytest")
    assert told[-1] == tests
    assert [line.removeprefix(tests) for line in told[:-1]] == ([" --share 1/3"] if there else [])
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


SWEEP = ["sweep", "8", "--partition=gpu", "--", "--config", "a b.py", "--config.model.mask=causal & none"]


def test_a_sweep_is_an_array_of_jobs_that_share_its_cells(checkout):
    (checkout / "a b.py").touch()
    told = call("scripts/slurm.sh", "--dry-run", *SWEEP, cwd=checkout, VIRTUAL_ENV=str(checkout / "env"))
    options, first, where, job = told.stdout.splitlines()
    assert options == "sbatch --job-name=positionbias --array=1-8 --signal=TERM@120 --partition=gpu"
    assert (first, where) == ("#!/usr/bin/env bash", f"cd {checkout} || exit 1")
    run = f"srun {checkout}/env/bin/python -m positionbias.sweep --config a\\ b.py"
    assert job == rf'{run} --config.model.mask=causal\ \&\ none --cells "$SLURM_ARRAY_TASK_ID/8"'
    assert asked(checkout, "pip") == [], "a dry run installs nothing"
    assert asked(checkout, "")[-1].endswith("=causal & none --cells 1/8 --status"), "the cells are counted"
    (checkout / "ml_collections.py").write_text("raise ImportError")  # as where the package is not installed
    again = call("scripts/slurm.sh", "--dry-run", *SWEEP, cwd=checkout, VIRTUAL_ENV=str(checkout / "env"))
    assert (again.stdout, again.returncode) == (told.stdout, 0)
    assert again.stderr == "the package is not installed here, so cells were not counted\n"


def test_an_array_of_more_jobs_than_cells_is_refused(root, checkout):
    (checkout / "study.py").write_text(
        "def get_config(n=4): return {'name': 's', 'task': 'inverse_permutation(n=4)'}\n"
        "def sweep(add):\n    add({'seed': 1})\n    add({'seed': 2})\n"
    )
    sweep = ["--dry-run", "sweep", "3", "--", "--config", "study.py:n=4"]
    done = call("scripts/slurm.sh", *sweep, cwd=checkout, VIRTUAL_ENV=sys.prefix, PYTHONPATH=str(root))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: --cells: '1/3' is not allowed; allowed: I/N with I from 1 to N, and N from 1 to the 2 cells there"
        " are.\n"
    )


@pytest.mark.parametrize("script", ["slurm.sh", "tpu_pod.sh"])
def test_launchers_have_help(checkout, script):
    done = call(f"scripts/{script}", "--help", cwd=checkout)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"\n  scripts/{script} --dry-run " in done.stdout
    assert done.stdout.endswith(("--requeue.\n", "terminal is closed.\n"))


def test_a_job_is_submitted_with_its_script(checkout):
    sbatch = checkout / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f'#!/usr/bin/env bash\necho "$*" >"{checkout}/told"\ncat >"{checkout}/job"\n')
    sbatch.chmod(0o755)
    environment = {"PATH": f"{sbatch.parent}:{os.environ['PATH']}", "VIRTUAL_ENV": str(checkout / "env")}
    (checkout / "c.py").touch()
    done = call("scripts/slurm.sh", "train", "4", "--time=1:00", "--", "--config", "c.py", cwd=checkout, **environment)
    assert done.returncode == 0, done.stderr
    told = "--job-name=positionbias --nodes=4 --ntasks-per-node=1 --signal=TERM@120 --time=1:00\n"
    assert (checkout / "told").read_text() == told
    job = (checkout / "job").read_text().splitlines()[-1]
    python = checkout / "env" / "bin" / "python"
    assert job == f"srun --kill-on-bad-exit=1 {python} -m positionbias.train --config c.py --processes auto"
    assert len(asked(checkout, "pip install")) == 1


SHARED = " is not allowed behind --, as jobs share out their work themselves"
LEFT_OUT = " is not allowed with 3 tasks, which are --array=1-3"


@pytest.mark.parametrize(
    ("script", "arguments", "why"),
    [
        ("slurm.sh", ["dance", "3"], "'dance' is neither sweep nor train"),
        ("slurm.sh", ["sweep", "0", "--", "--config"], "'0' is not allowed as a number of tasks or nodes"),
        ("slurm.sh", ["train"], "'' is not allowed as a number of tasks or nodes"),
        ("slurm.sh", ["train", "2", "--config", "c.py"], "there is no -- before what positionbias is told"),
        ("slurm.sh", ["train", "2", "--"], "positionbias is told nothing behind --"),
        ("slurm.sh", ["train", "2", "--", "c.py"], "there is no --config behind --"),
        ("slurm.sh", ["train", "2", "--", "--config", "d.py:layers=4"], "there is no file 'd.py' in {}"),
        ("slurm.sh", ["sweep", "2", "--", "--config=d.py"], "there is no file 'd.py' in {}"),
        ("slurm.sh", ["sweep", "2", "--", "--config=c.py", "--cells=1/2"], f"--cells{SHARED}"),
        ("slurm.sh", ["sweep", "2", "--", "--config", "c.py", "--status"], f"--status{SHARED}"),
        ("slurm.sh", ["train", "2", "--", "--config", "c.py", "--processes", "auto"], f"--processes{SHARED}"),
        ("slurm.sh", ["sweep", "3", "--array=1-2", "--", "--config", "c.py"], f"'--array=1-2'{LEFT_OUT}"),
        ("slurm.sh", ["sweep", "3", "-a", "1-2", "--", "--config", "c.py"], f"'-a'{LEFT_OUT}"),
        ("tpu_pod.sh", ["", "zone", "log"], "name, zone or what to do is missing"),
        ("tpu_pod.sh", ["pod", "zone", "install", ""], "install takes a repository and perhaps a revision"),
        ("tpu_pod.sh", ["pod", "zone", "train", "c.py"], "there is no --config behind train"),
        (
            "tpu_pod.sh",
            ["pod", "zone", "train", "--config", "c.py", "--processes", "auto"],
            "--processes is not allowed behind train, as hosts find each other",
        ),
        ("tpu_pod.sh", ["pod", "zone"], "name, zone or what to do is missing"),
        ("tpu_pod.sh", ["pod", "zone", "dance"], "'dance' is not allowed"),
        ("tpu_pod.sh", ["pod", "zone", "train"], "train takes what positionbias.train does"),
        ("tpu_pod.sh", ["pod", "zone", "install"], "install takes a repository and perhaps a revision"),
        ("tpu_pod.sh", ["pod", "zone", "log", "more"], "log takes nothing more"),
    ],
)
def test_launchers_refuse_in_a_sentence(checkout, script, arguments, why):
    (checkout / "c.py").touch()
    done = call(f"scripts/{script}", *arguments, cwd=checkout, VIRTUAL_ENV=str(checkout / "env"))
    assert done.returncode == 2
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith(f"error: {why.format(checkout)}; allowed: scripts/{script} ")


def test_a_pod_gets_one_command_for_every_host(checkout, tmp_path_factory):
    """What gcloud would run is run: on a host with the package, in its folder, on after the terminal is gone."""
    gcloud, host = checkout / "bin" / "gcloud", tmp_path_factory.mktemp("host")
    gcloud.parent.mkdir()
    gcloud.write_text(
        "#!/usr/bin/env bash\n"
        f'echo "${{@:1:$#-1}}" >"{checkout}/told"\n'
        "last=${@: -1}\n"
        "sleep() { wait; }; export -f sleep\n"  # the host's command ends when what it started has
        f'cd "{host}" && exec bash -c "${{last#--command=}}"\n'
    )
    gcloud.chmod(0o755)
    shutil.copytree(checkout / "env", host / "positionbias" / ".venv")
    more = ["--config", "a b.py", "--config.model.mask=causal & none"]
    path = f"{gcloud.parent}:{os.environ['PATH']}"
    done = call("scripts/tpu_pod.sh", "pod", "us-central2-b", "train", *more, cwd=checkout, PATH=path)
    assert done.returncode == 0, done.stderr
    assert (checkout / "told").read_text() == "compute tpus tpu-vm ssh pod --zone=us-central2-b --worker=all\n"
    (line,) = (checkout / "asked").read_text().splitlines()
    run = "-m positionbias.train --config a b.py --config.model.mask=causal & none --processes auto"
    assert line == f"{host}/positionbias {run}"


def test_a_dry_run_of_a_pod_can_be_read_and_typed(checkout):
    told = call("scripts/tpu_pod.sh", "--dry-run", "pod", "z", "train", "--config", "it's.py", cwd=checkout).stdout
    first, *steps = told.splitlines()
    assert first == "gcloud compute tpus tpu-vm ssh pod --zone=z --worker=all --command='"
    assert (steps[0], steps[-1]) == ("cd positionbias &&", "tail -n 5 pod.log'")
    assert "--config it\\'s.py " in shlex.split(told)[-1]
    assert "\\ " not in told


@pytest.mark.parametrize("relative", [False, True])
def test_a_pod_installs_from_the_repository_that_is_named_last(checkout, tmp_path, relative):
    """A host that has a clone of another repository is given the commits of this one; run as far as git goes."""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for name in ("one", "two"):
        subprocess.run([*git, "init", "-q", tmp_path / name], check=True)
        subprocess.run([*git, "-C", tmp_path / name, "commit", "-q", "--allow-empty", "-m", name], check=True)
        source = name if relative else tmp_path / name
        told = call("scripts/tpu_pod.sh", "--dry-run", "pod", "zone", "install", source, cwd=checkout)
        command = shlex.split(told.stdout)[-1].removeprefix("--command=")
        fetched = command[: command.index(" &&\n{ [ -d .venv ]")]
        subprocess.run(["bash", "-c", fetched], cwd=tmp_path, check=True)
        log = ["git", "-C", tmp_path / "positionbias", "log", "-1", "--format=%s"]
        assert subprocess.run(log, check=True, capture_output=True, text=True).stdout == f"{name}\n"


@pytest.mark.slow
def test_the_compilers_for_chips_take_the_attention_kernels(root):
    done = call(
        root / "scripts/compile_targets.sh", "--target", "v5e,h200", "--case", "gradient", cwd=root, XLA_FLAGS=""
    )
    if "could not be installed" in done.stderr or "no Python from 3.12 on" in done.stderr:
        pytest.skip("the compilers cannot be had here")
    assert done.returncode == 0, done.stderr
    assert "| `mosaic_tpu` | gradient | 6 of 6" in done.stdout
    assert "| `mosaic_gpu` | gradient | - | 4 of 4" in done.stdout
