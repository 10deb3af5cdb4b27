"""Overrides, the command line of every entry, and its help."""

import signal
import subprocess
import sys

import pytest
from broken import BASE, put

from positionbias.config.cli import Parser, apply_overrides, describe_fields, parse_command_line, run_entry
from positionbias.config.resolve import leaves, resolve
from positionbias.files import WriteError
from positionbias.spec import ConfigError


def changed(*overrides):
    return resolve(apply_overrides(BASE, overrides))


def refused(call, *arguments) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    return str(caught.value)


def parser() -> Parser:
    made = Parser("python -m positionbias.train", "Train.")
    made.add_argument("--config", required=True, help="the file")
    made.add_argument("--workdir", help="the folder")
    made.add_argument("--again", action="store_true", help="a switch")
    made.add_argument("--stop", type=int, help="a number")
    return made


# ------------------------------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("path", "value", "vary"),
    [
        ("optimizer.learning_rate", "3e-3", {"learning_rate": [1e-3, 4e-3]}),
        ("optimizer.name.weight_decay", "0.5", {"weight_decay": [0.1, 0.2]}),
        ("seed", "7", {"seed": [0, 1]}),
        ("task.p_bursty", "1", {"p_bursty": [0.1, 0.2]}),
    ],
)
def test_what_every_replica_has_of_its_own_is_not_set_beside_it(path, value, vary):
    (name,) = vary
    task = "in_context_classification(items=4, dimension=8, classes=8, labels=4, p_bursty=0.5)"
    raw = put({"train.vary": vary, "task": task})
    told = refused(apply_overrides, raw, [(path, value)])
    assert told == (
        f"{path}: {value!r} would do nothing, as train.vary gives every replica its {name};"
        f" allowed: train.vary.{name}, or train.vary without it."
    )
    apply_overrides(raw, [(f"train.vary.{name}", "[1, 2]")])


def test_text_is_read_by_the_fields_type():
    config = changed(
        ("name", "3"),
        ("model.layers", "1"),
        ("model.head_size", "8"),
        ("model.mlp", "False"),
        ("model.residual", "none"),
        ("model.mask", "causal & sliding_window(4)"),
        ("model.frozen", "['query']"),
        ("optimizer.learning_rate", "2e-3"),
        ("optimizer.clip_norm", "1"),
        ("train.microbatch", "4"),
        ("train.mesh.data", "auto"),
        ("evaluation.every", " 20"),
    )
    assert config.name == "3"
    assert config.model.layers == 1
    assert config.model.head_size == 8
    assert config.model.mlp is False
    assert config.model.residual == "none"
    assert config.model.mask == "causal & sliding_window(width=4)"
    assert config.model.frozen == ("query",)
    assert config.optimizer.learning_rate == 0.002
    assert config.optimizer.clip_norm == 1.0
    assert config.train.microbatch == 4
    assert config.train.mesh.data == "auto"
    assert config.evaluation.every == 20


def test_none_sets_a_field_back():
    raw = apply_overrides(put({"model.head_size": 8}), {"model.head_size": "None"})
    assert resolve(raw).model.head_size is None


def test_typed_values_pass_as_they_are():
    raw = apply_overrides(BASE, {"train.steps": 60, "train.vary.seed": (4, 5), "model.frozen": ["key"], "task.n": 6})
    config = resolve(raw)
    assert config.train.steps == 60
    assert config.train.vary == {"seed": [4, 5]}
    assert config.model.frozen == ("key",)
    assert config.task == "inverse_permutation(n=6, alphabet=16, scratch=False)"


def test_an_argument_of_a_spec_is_edited_listed_or_not():
    assert changed(("task.n", "6")).task == "inverse_permutation(n=6, alphabet=16, scratch=False)"
    assert changed(("task.scratch", "True")).task == "inverse_permutation(n=4, alphabet=16, scratch=True)"
    assert (
        changed(("optimizer.name.weight_decay", "0.1")).optimizer.name
        == "adamw(b1=0.9, b2=0.999, eps=1e-08, weight_decay=0.1)"
    )
    assert changed(("model.init.embedding.std", "0.5")).model.init.embedding == "normal(std=0.5)"
    config = changed(("model.architecture", "encoder_decoder"), ("model.architecture.encoder_mask", "causal"))
    whole = "encoder_decoder(encoder_mask=causal, cross_mask=bidirectional, encoder_layers=None)"
    assert config.model.architecture == whole


def test_a_missing_argument_of_a_spec_may_come_as_an_override():
    assert changed(("model.mask", "sliding_window"), ("model.mask.width", "3")).model.mask == "sliding_window(width=3)"


def test_positional_arguments_keep_their_place():
    raw = apply_overrides(put({"task": "inverse_permutation(6, 9)"}), {"task.alphabet": "8"})
    assert raw["task"] == "inverse_permutation(n=6, alphabet=8)"


@pytest.mark.parametrize("order", [1, -1])
def test_whole_specs_come_before_their_arguments_in_any_order(order):
    given = [("task", "inverse_permutation(alphabet=5)"), ("task.n", "5"), ("train.vary", "{'seed': [1, 2]}")]
    config = changed(*[*given, ("train.vary.seed", "[3, 4]")][::order])
    assert config.task == "inverse_permutation(n=5, alphabet=5, scratch=False)"
    assert config.train.vary == {"seed": [3, 4]}


def test_what_was_given_is_left_alone():
    raw = put({"train.vary": {"seed": [1, 2]}})
    apply_overrides(raw, {"train.vary.learning_rate": [1, 2], "model.layers": 4})
    assert raw == put({"train.vary": {"seed": [1, 2]}})


def test_text_that_is_no_table_is_refused_by_that_name():
    with pytest.raises(ConfigError, match=r"^train\.vary: 'seed=0' is not allowed; allowed: a table\.$"):
        changed(("train.vary", "seed=0"))


def test_twice_the_same_is_no_mistake():
    assert changed(("seed", "4"), ("seed", "4")).seed == 4


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ([("seed", "4"), ("seed", "5")], "seed: is given twice, as '4' and '5'; allowed: one value."),
        ([("model.layers.n", "4")], "model.layers.n: model.layers has nothing of that name below it; set model.layers"),
        ([("task.m", "4")], "task.m: unknown argument of inverse_permutation 'm'; allowed: alphabet, n, scratch."),
        (
            [("task.alphabat", "4")],
            "task.alphabat: unknown argument of inverse_permutation 'alphabat', did you mean 'alp",
        ),
        ([("train", "{}")], "train: is a group of fields and cannot be set whole; allowed: one of its fields steps,"),
        ([("steps", "4")], "steps: unknown field 'steps', did you mean 'train.steps'? allowed: checkpoint,"),
        (
            [("model.mask", "causal & prefix(2)"), ("model.mask.length", "3")],
            "model.mask.length: model.mask is a combination of masks, 'causal & prefix(2)'; give the whole",
        ),
        (
            [("model.mask", "[prefix(2)] * 2"), ("model.mask.length", "3")],
            "model.mask.length: model.mask is a layer pattern, '[prefix(2)] * 2'; give the whole of",
        ),
        ([("model.layers", "x")], "model.layers: 'x' is not allowed; allowed: a whole number."),
        ([("train.vary.sed", "[1]")], "train.vary.sed: unknown hyperparameter 'sed', did you mean 'seed'?"),
    ],
)
def test_refusals(overrides, sentence):
    assert refused(changed, *overrides).startswith(sentence)


def test_an_argument_of_a_task_that_is_not_given():
    message = refused(apply_overrides, {"name": "a"}, {"task.n": "4"})
    assert message == "task.n: there is no task to edit; give task itself as well."


# ---------------------------------------------------------------------------------------------------- command line


def test_overrides_are_parted_from_flags():
    argv = ["--config.seed=3", "--config", "a.py:n=4", "--config.model.mask", "a & b", "--workdir=w", "--config.x=-1=2"]
    flags, overrides = parse_command_line(parser(), argv)
    assert (flags.config, flags.workdir, flags.again) == ("a.py:n=4", "w", False)
    assert overrides == [("seed", "3"), ("model.mask", "a & b"), ("x", "-1=2")]


def test_a_negative_number_is_a_value():
    assert parse_command_line(parser(), ["--config", "a.py", "--config.seed", "-1"])[1] == [("seed", "-1")]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--workdri=x"], "command line: unknown flag '--workdri', did you mean '--workdir'?"),
        (["--work=x"], "command line: unknown flag '--work', did you mean '--workdir'?"),
        (["--train.steps=4"], "command line: unknown flag '--train.steps', did you mean '--config.train.steps'?"),
        (["--steps", "4"], "command line: unknown flag '--steps', did you mean '--config.train.steps'?"),
        (["--conifg.seed=4"], "command line: unknown flag '--conifg.seed', did you mean '--config.seed'?"),
        (["--config.trian.steps"], "trian.steps: needs a value; write --config.trian.steps=VALUE."),
        (["--config.seed", "--again"], "seed: needs a value; write --config.seed=VALUE."),
        (
            ["stray"],
            "command line: unexpected 'stray'; allowed: -h, --help, --config, --workdir, --again, --stop, --config.FI",
        ),
        (["--workdir"], "--workdir: needs a value; write --workdir VALUE."),
        (["--stop", "1.5"], "--stop: '1.5' is not allowed; allowed: a whole number."),
        (["--again=yes"], "command line: argument --again: ignored explicit argument 'yes'; allowed: "),
        (["--config=b.py"], "command line: --config is given twice; allowed: once."),
    ],
)
def test_command_line_refusals(argv, sentence, capsys):
    message = refused(parse_command_line, parser(), ["--config", "a.py", *argv])
    assert message.startswith(sentence)
    assert message.endswith(".")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ([], "--config is missing; write python -m positionbias.train --config CONFIG (--help tells more)."),
        (["--again"], "--config is missing; write python -m positionbias.train --config CONFIG (--help tells more)."),
        (["recall.py"], "unexpected 'recall.py', did you mean '--config recall.py'?"),
        (["--workdir", "a.py", "--again", "b.py:n=4"], "unexpected 'b.py:n=4', did you mean '--config b.py:n=4'?"),
        (["--config.seed=3", "a b.py"], """unexpected 'a b.py', did you mean "--config 'a b.py'"?"""),
        (["steps=4"], "--config is missing; write python -m positionbias.train --config CONFIG (--help tells more)."),
        (
            ["--workdir", "a.py"],
            "--config is missing; write python -m positionbias.train --config CONFIG (--help tells more).",
        ),
        (["--confg", "a.py"], "unknown flag '--confg', did you mean '--config'? allowed: -h, --help, --config, --work"),
    ],
)
def test_a_required_flag_is_named(argv, sentence):
    assert refused(parse_command_line, parser(), argv).startswith(f"command line: {sentence}")


def test_a_folder_may_be_meant_for_the_one_flag_that_is_required():
    bare = Parser("report", "Report.")
    bare.add_argument("--workdir", required=True)
    sentence = "command line: unexpected 'runs/a', did you mean '--workdir runs/a'?"
    assert refused(parse_command_line, bare, ["runs/a"]) == sentence
    sentence = "command line: --workdir is missing; write report --workdir WORKDIR (--help tells more)."
    assert refused(parse_command_line, bare, []) == sentence


def test_an_argument_that_is_missing_is_told_with_what_it_is():
    bare = Parser("show", "Show.")
    bare.add_argument("task", help="spec of a task, as in show 'reversal(pairs=2)'")
    sentence = "command line: task is missing; write the spec of a task, as in show 'reversal(pairs=2)'."
    for argv in ([], ["--sed=3"]):
        assert refused(parse_command_line, bare, argv) == sentence


def test_help_is_given_without_the_required_flag(capsys):
    with pytest.raises(SystemExit):
        parse_command_line(parser(), ["a.py", "--help"])
    assert "model.heads" in capsys.readouterr().out


def test_entries_without_a_config_take_no_overrides():
    bare = Parser("report", "Report.")
    bare.add_argument("--workdir")
    assert refused(parse_command_line, bare, ["--config.seed=1"]).startswith(
        "command line: unknown flag '--config.seed'"
    )
    assert "Any field" not in bare.format_help()


def test_help_lists_every_field_within_100_columns():
    text = parser().format_help()
    lines = describe_fields().splitlines()
    assert text.endswith(describe_fields())
    assert max(map(len, lines)) <= 100
    assert [line.split()[0] for line in lines[5:] if line[2:3].strip()] == list(leaves())
    assert lines[4].split() == ["field", "default", "meaning"]
    assert "  model.heads                 4                 number of attention heads N" in lines


def test_help_and_list_import_no_jax():
    program = (
        "import sys, positionbias.list, positionbias.config.cli as cli; cli.describe_fields();"
        " positionbias.list.main([]); assert 'jax' not in sys.modules, 'jax'"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def run(program: str, *argv: str) -> subprocess.CompletedProcess:
    start = f"from positionbias.config.cli import *\n{program}\nrun_entry(main)"
    return subprocess.run([sys.executable, "-c", start, *argv], capture_output=True, text=True, check=False)


def test_a_refused_entry_prints_one_line_and_exits_with_2():
    done = run("def main(argv): raise ConfigError(f'x: {argv[0]} is wrong.')", "this")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: x: this is wrong.\n")


def test_an_entry_exits_with_what_main_returns():
    assert run("def main(argv): return len(argv)", "a", "b", "c").returncode == 3
    assert run("def main(argv): raise KeyboardInterrupt").returncode == 130


def test_ctrl_c_on_the_way_out_shows_no_traceback():
    program = (
        "import atexit, time\nfrom positionbias.config.cli import run_entry\n"
        "run_entry(lambda argv: atexit.register(lambda: (print('on the way out', flush=True), time.sleep(60))) and 0)"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as process:
        assert process.stdout.readline() == "on the way out\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == ""
    assert process.returncode == -signal.SIGINT


def test_a_bug_is_no_users_mistake():
    def main(argv):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        run_entry(main)


@pytest.mark.parametrize("error", [WriteError("no room."), MemoryError("no room.")])
def test_a_machine_without_room_is_one_line_and_code_1(error, capsys):
    def main(argv):
        raise error

    with pytest.raises(SystemExit) as caught:
        run_entry(main)
    assert (caught.value.code, capsys.readouterr().err) == (1, "error: no room.\n")
