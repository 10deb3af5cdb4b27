"""The strict config: canonical text, defaults, hashes, and what the sentences say."""

import dataclasses
import json
import operator
import subprocess
import sys

import ml_collections
import numpy as np
import pytest
from broken import BASE, put

from positionbias import spec
from positionbias.config import schema
from positionbias.config.resolve import config_hash, leaves, resolve, stored_hash
from positionbias.spec import ConfigError


def refusal(raw) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(raw)
    return str(caught.value)


def test_defaults_and_full_text():
    config = resolve({"name": "a", "task": "inverse_permutation(8, scratch=True)"})
    assert config.task == "inverse_permutation(n=8, alphabet=16, scratch=True)"
    assert config.objective == "next_token(others=0.0)"
    assert config.model.init.embedding == "normal(std=0.02)"
    assert config.train.vary == {}


@pytest.mark.parametrize("task", ["inverse_permutation", "associative_recall"])
@pytest.mark.parametrize("architecture", ["decoder_only", "encoder_decoder"])
def test_a_resolved_config_leaves_no_argument_to_a_default(task, architecture):
    config = resolve({"name": "a", "task": task, "model": {"architecture": architecture, "position": "decay"}})

    def given(axis, node):
        if isinstance(node, spec.Call):
            names = [name for name, _ in node.keywords]
            assert (names, node.positional) == (list(spec.arguments(spec.load_member(axis, node.name, "x"))), ())

    for path, leaf in leaves().items():
        if leaf.axis:
            given(leaf.axis, spec.parse(operator.attrgetter(path)(config), path))
    assert config.model.position == "decay(gamma=0.8)"
    assert config.optimizer.name == "adamw(b1=0.9, b2=0.999, eps=1e-08, weight_decay=0.0)"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("causal&sliding_window(4)", "causal & sliding_window(width=4)"),
        ("~(causal | prefix(2)) & segments", "~(causal | prefix(length=2)) & segments"),
        ("[causal, bidirectional]*2", "[causal, bidirectional, causal, bidirectional]"),
        ("2 * [causal] + [prefix(1), prefix(length=1)]", "[causal, causal, prefix(length=1), prefix(length=1)]"),
        ("[causal] * 4", "causal"),
    ],
)
def test_layer_fields_have_one_text(given, text):
    assert resolve(put({"model.mask": given, "model.layers": 4})).model.mask == text


def test_a_resolved_config_resolves_to_itself():
    config = resolve(
        put(
            {
                "model.mask": "[causal, sliding_window(2)]",
                "model.frozen": ["query", "key"],
                "train.vary": {"seed": [3, 1], "learning_rate": [1, 0.5]},
                "train.replicas": 4,
            }
        )
    )
    text = json.dumps(schema.to_dict(config))
    again = resolve(json.loads(text))
    assert again == config
    assert config_hash(again) == config_hash(config)


def test_configdicts_arrays_and_whole_numbers_are_taken():
    raw = ml_collections.ConfigDict(put({"optimizer.learning_rate": 1, "train.replicas": 4}))
    raw.train.vary = {"seed": np.arange(2), "learning_rate": np.array([0.5, 2.0])}
    config = resolve(raw)
    assert config.optimizer.learning_rate == 1.0
    assert type(config.optimizer.learning_rate) is float
    assert config.train.vary == {"learning_rate": [0.5, 2.0], "seed": [0, 1]}
    assert list(config.train.vary) == ["learning_rate", "seed"]


def test_the_hash_is_the_same_on_every_machine():
    raw = {"name": "hashed", "task": "inverse_permutation(n=4, alphabet=5)", "seed": 7}
    program = f"from positionbias.config.resolve import *; print(config_hash(resolve({raw!r})))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    digest = config_hash(resolve(raw))
    assert run.stdout.strip() == digest
    assert len(digest) == 12
    assert int(digest, 16) >= 0


def test_the_hash_tells_configs_apart_but_not_their_spelling():
    plain = config_hash(resolve(put({})))
    assert config_hash(resolve(put({"task": "inverse_permutation(4, alphabet=16)"}))) == plain
    assert config_hash(resolve(put({"optimizer.learning_rate": 0.001}))) == plain
    long = {"model.operator": "softmax(True)", "model.mask": "[causal(), causal]", "optimizer.schedule": "cosine(0)"}
    assert config_hash(resolve(put(long))) == plain
    assert config_hash(resolve(put({"seed": 1}))) != plain
    assert config_hash(resolve(put({"train.vary.seed": [0, 1]}))) != plain


def test_the_hash_of_what_is_stored_needs_no_schema():
    config = resolve(put({"model.frozen": ["query"]}))
    stored = json.loads(json.dumps(schema.to_dict(config)))
    assert stored_hash(stored) == config_hash(config)
    del stored["model"]["bias"]  # as if the field had been added since
    assert stored_hash(stored) != config_hash(resolve(stored)) == config_hash(config)
    assert stored_hash({"b": [1, None], "a": {"x": 0.5}}) == "a37419f6f305"


def test_the_hash_knows_no_order_of_keys():
    config = resolve(put({"train.vary": {"seed": [3, 1], "learning_rate": [1, 0.5]}, "train.replicas": 4}))
    turned = dict(reversed(config.train.vary.items()))
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, vary=turned))
    assert list(turned) == ["seed", "learning_rate"]
    assert config_hash(other) == config_hash(config)


def test_weight_decay_varies_only_where_there_is_one(monkeypatch):
    @spec.member("optimizers", "bare")
    @dataclasses.dataclass(frozen=True)
    class Bare:
        momentum: float = 0.0

    index = {**spec._index(), "optimizers": {**spec._index()["optimizers"], "bare": __name__}}
    monkeypatch.setattr(spec, "_index", lambda: index)
    fields = {"optimizer.name": "bare", "train.vary.weight_decay": [0, 0.1]}
    assert refusal(put(fields)).startswith("train.vary.weight_decay: bare has no weight decay; allowed: ")
    varied = resolve(put({**fields, "optimizer.name": "adamw"})).train.vary
    assert varied == {"weight_decay": [0.0, 0.1]}


def test_the_task_says_which_of_its_arguments_may_vary_and_seeds_vary_fastest():
    fields = {"task": "in_context_classification", "train.replicas": 8}
    vary = {"seed": [1, 0], "p_bursty": [0, 0.5], "init_scale": [1, 2]}
    config = resolve(put({**fields, "train.vary": vary}))
    assert config.train.vary == {"init_scale": [1.0, 2.0], "p_bursty": [0.0, 0.5], "seed": [1, 0]}
    assert list(config.train.vary) == ["init_scale", "p_bursty", "seed"]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"train.stpes": 5},
            "train.stpes: unknown field 'stpes', did you mean 'steps'? allowed: batch_size, dtype, log_every, mesh,"
            " microbatch, replica_layout, replicas, steps, steps_per_dispatch, vary.",
        ),
        (
            {"checkpoint.learning_rate": 1},
            "checkpoint.learning_rate: unknown field 'learning_rate', did you mean 'optimizer.learning_rate'?"
            " allowed: every, keep_every, keep_last.",
        ),
        (
            {"optimizer.learning_rate": 1e300},
            "optimizer.learning_rate = 1e+300 is not allowed; allowed: a number of a size from 1.2e-38 to 3.4e+38, as"
            " programs read it in 32 bits.",
        ),
        (
            {"train.vary.weight_decay": [0, 1e-50]},
            "train.vary.weight_decay = 1e-50 is not allowed; allowed: a number of a size from 1.2e-38 to 3.4e+38, as"
            " programs read it in 32 bits.",
        ),
        *(
            (
                {field: told.format(1e-50)},
                f"{field}: {what} = 1e-50 is not allowed; allowed: a number of a size from 1.2e-38 to 3.4e+38, as"
                " programs read it in 32 bits.",
            )
            for field, told, what in (
                ("optimizer.name", "adamw(weight_decay={})", "weight_decay"),
                ("optimizer.name", "adamw(eps={})", "eps"),
                ("optimizer.name", "sgd(momentum={})", "momentum"),
                ("optimizer.schedule", "cosine(final={})", "final"),
            )
        ),
        (
            {"optimizer.name": "adamw(b2=0.999999999)"},
            "optimizer.name: b2 = 0.999999999 is read in 32 bits by programs, where b2 = 1.0 is not allowed; allowed: a"
            " number from 0 to below 1.",
        ),
        (
            {"train.vary.learning_rate": [1e-3, 1e-3 + 1e-12]},
            "train.vary.learning_rate = [0.001, 0.001000000001] is not allowed; allowed: values that differ in 32 bits,"
            " as programs read them.",
        ),
        ({"model.width": "wide"}, "model.width: 'wide' is not allowed; allowed: a whole number."),
        ({"model.layers": 0}, "model.layers = 0 is not allowed; allowed: a whole number, from 1 to 1000."),
        (
            {"model.layers": 300000000},
            "model.layers = 300000000 is not allowed; allowed: a whole number, from 1 to 1000.",
        ),
        (
            {"model.mlp_width": 2000000},
            "model.mlp_width = 2000000 is not allowed; allowed: a whole number or None, from 1 to 1048576.",
        ),
        (
            {"train.replicas": 1000000, "train.vary": {}},
            "train.replicas = 1000000 is not allowed; allowed: a whole number, from 1 to 4096.",
        ),
        ({"optimizer.learning_rate": 0}, "optimizer.learning_rate = 0.0 is not allowed; allowed: a number, above 0."),
        (
            {"train.microbatch": "atuo"},
            "train.microbatch: 'atuo' is not allowed; allowed: a whole number or 'auto'.",
        ),
        (
            {"model.residual": "concat"},
            "model.residual: 'concat' is not allowed, did you mean 'concatenate'; allowed: 'add' or 'concatenate' or"
            " 'none'.",
        ),
        (
            {"name": "my run"},
            "name: 'my run' is not allowed, did you mean 'my_run'? allowed: 1 to 100 letters, digits, '_', '-' and"
            " '.', a letter or digit first.",
        ),
        (
            {"model.heads": 5},
            "model.heads = 5 does not divide model.width = 64; allowed: a divisor of the width, or any number of heads"
            " with model.head_size given.",
        ),
        (
            {"train.vary.seed": [1, 2, 3]},
            "train.vary.seed: 3 of seed make 3 combinations, but train.replicas = 2; allowed: train.replicas = 3, one"
            " for each, or a sweep (zipped) for values that go together.",
        ),
        (
            {"train.vary": {"seed": [1, 2], "learning_rate": [0.1, 0.2]}},
            "train.vary: 2 of learning_rate times 2 of seed make 4 combinations, but train.replicas = 2; allowed:"
            " train.replicas = 4, one for each, or a sweep (zipped) for values that go together.",
        ),
        (
            {"train.vary.weight_decay": [0.1, -0.1]},
            "train.vary.weight_decay: weight_decay = -0.1 is not allowed; allowed: a number from 0.",
        ),
        (
            {"train.vary.warmup_steps": [0, 40]},
            "train.vary.warmup_steps = 40 leaves nothing of train.steps = 40; allowed: fewer than that.",
        ),
        (
            {"train.vary.p_bursty": [0.5, 1]},
            "train.vary.p_bursty: unknown hyperparameter 'p_bursty'; allowed: init_scale, learning_rate, seed,"
            " warmup_steps, weight_decay.",
        ),
        (
            {"task": "in_context_classification", "train.vary.p_bursty": [0.5, 2]},
            "train.vary.p_bursty: p_bursty = 2.0 is not allowed; allowed: a number from 0 to 1.",
        ),
        (
            {"model.mask": "[causal] * 3"},
            "model.mask: the pattern '[causal] * 3' has 3 entries, allowed: 2, one a layer.",
        ),
        (
            {"task": "inverse_permutation(alphabat=4)"},
            "task: unknown argument of inverse_permutation 'alphabat', did you mean 'alphabet'? allowed: alphabet, n,"
            " scratch.",
        ),
    ],
)
def test_sentences(fields, sentence):
    assert refusal(put(fields)) == sentence


def test_required_fields_say_what_is_allowed():
    task = refusal({"name": "a"})
    assert task.startswith("task: must be given; allowed: ")
    assert "inverse_permutation" in task
    assert refusal({"task": "inverse_permutation"}).startswith("name: must be given; allowed: 1 to 100 letters, digits")


def test_heads_need_not_divide_the_width_if_their_size_is_given():
    assert resolve(put({"model.heads": 5, "model.head_size": 16})).model.heads == 5


def test_cadences_may_equal_the_steps_and_need_not_divide_them():
    config = resolve(put({"train.log_every": 7, "evaluation.every": 40, "checkpoint.every": 40}))
    assert config.evaluation.every == 40


def test_steps_per_dispatch_may_divide_everything():
    fields = {"train.steps_per_dispatch": 5, "train.log_every": 10, "evaluation.every": 15, "checkpoint.every": 20}
    assert resolve(put(fields)).train.steps_per_dispatch == 5


def test_resolving_leaves_what_was_given_alone():
    before = json.dumps(BASE)
    resolve(BASE)
    assert json.dumps(BASE) == before


def test_where_nothing_is_trained_no_cadence_and_no_warm_up_is_too_long():
    fields = {"train.steps": 0, "optimizer.warmup_steps": 5, "evaluation.every": 10, "checkpoint.every": 10}
    assert resolve(put(fields)).train.steps == 0


def test_a_member_outside_of_the_package_is_told_from_a_wrong_name(monkeypatch):
    monkeypatch.setattr(spec, "_MEMBERS", {**spec._MEMBERS, ("operators", "strongest"): type("Strongest", (), {})})
    told = refusal(put({"model.operator": "strongest(keys=4)"}))
    assert told.startswith(f"model.operator: operator 'strongest' is defined in {__name__}, outside of the package, ")
    assert told.endswith(f"; allowed: a file in {spec.PACKAGE}.")


def test_a_member_that_the_scan_of_the_package_does_not_find_is_told_so(monkeypatch):
    strongest = type("Strongest", (), {"__module__": "positionbias.operators.strongest"})
    monkeypatch.setattr(spec, "_MEMBERS", {**spec._MEMBERS, ("operators", "strongest"): strongest})
    told = refusal(put({"model.operator": "strongest(keys=4)"}))
    assert "positionbias.operators.strongest, in a line that is not found without importing it" in told
    assert told.endswith('; allowed: @member("operators", "strongest") as a line of its own.')
