"""What a run says when it ends."""

from positionbias import launch


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
    assert lines[1] == "evaluated before training"
    assert lines[2].startswith("share of influence by input position")
    assert lines[-1] == f"report: {tmp_path / 'run' / 'report.html'}"
