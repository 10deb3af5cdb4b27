"""What a run says when it ends."""

import pytest

from positionbias import launch, runtime
from positionbias.errors import ConfigError


def test_a_run_evaluated_at_initialisation_only_has_a_report_and_no_table(tiny, tmp_path, capsys):
    config, folder = tiny(), tmp_path / "run"
    launch.run(config, folder, stop_after=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == f"report: {folder / 'report.html'} (only the evaluation at initialisation is there yet)"
    assert not [line for line in lines if line.startswith(("accuracy by", "evaluated"))]
    launch.run(config, folder)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"report: {folder / 'report.html'}"
    assert [line for line in lines if line.startswith("accuracy by")]


def test_a_run_of_no_steps_has_a_table(tiny, tmp_path, capsys):
    launch.run(tiny({"train.steps": 0}), tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:4] == ["compiling", "evaluating the models before training", "evaluated before training"]
    assert lines[4].startswith("share of influence by input position")
    assert lines[-1] == f"report: {tmp_path / 'run' / 'report.html'}"


@pytest.mark.parametrize(
    "given",
    ["localhost,2,0", "localhost:80,2,2", "here", "", "a:1,2", "a:70000,2,0", "a:1,2,-1", f"a:1,{5000 * '9'},0"],
)
def test_processes_that_cannot_be_are_refused(given):
    with pytest.raises(ConfigError) as refused:
        launch.processes(given)
    allowed = "'auto', or HOST:PORT,COUNT,INDEX, of which INDEX is from 0 to below COUNT."
    assert str(refused.value) == str(ConfigError(f"--processes: {given!r} is not allowed; allowed: {allowed}"))


def test_processes_are_named_or_left_to_be_found():
    assert launch.processes(None) is None
    assert launch.processes("auto") == runtime.Processes(None, None, None)
    assert launch.processes("[::1]:9876,4,3") == runtime.Processes("[::1]:9876", 4, 3)
