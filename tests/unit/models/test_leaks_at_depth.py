"""What a trained model's rows depend on, under every mask: exactly what reach says, at depth too."""

import dataclasses

import jax
import numpy as np
import pytest

from positionbias import compatibility, spec
from positionbias.config.build import build
from positionbias.models.sites import Sites
from positionbias.replicas import Layout
from positionbias.tokens import sequential
from positionbias.training.auto import Auto
from positionbias.training.program import Program

T, LAYERS = 9, 4
ROLE = np.array([1, 1, 2, 2, 2, 0, 0, 0, 0])  # modality, question, answer
TOKENS = sequential(
    T,
    role=ROLE,
    segment=np.array([0, 1, 1, 2, 2, 2, 0, 0, 0]),
    frame=np.array([0, 1, 1, 2, 2, 2, 0, 3, 3]),
    scale=np.array([0, 1, 0, 2, 1, 2, 0, 1, 1]),
    hidden=np.array([0, 0, 1, 0, 0, 1, 0, 0, 0]),
    rank=np.array([4, 2, 8, 0, 1, 7, 3, 6, 5]),
)


@pytest.fixture(scope="module")
def trained():
    """The experiment and the parameters of one replica after a hundred steps under a causal mask."""
    from positionbias.config.resolve import resolve

    config = resolve(
        {
            "name": "leaks",
            "task": "associative_recall(pairs=4, keys=6, values=6, delays=1)",
            "model": {"layers": LAYERS, "width": 16, "heads": 2, "position": "rope", "norm": "none", "mlp": False},
            "optimizer": {"learning_rate": 3e-3},
            "train": {"steps": 100, "batch_size": 32, "replicas": 1},
        }
    )
    experiment = build(config)
    assert experiment.task.length(experiment.task.conditions()[0]) == T
    program = Program(experiment, Auto(Layout("loop"), 32, 100))
    state = jax.jit(jax.vmap(program.fresh))(program.replicas())
    one, own = jax.tree.map(lambda x: x[0], (state, program.replicas()))
    state, metrics = jax.jit(lambda s, o: program.advance(s, o, (), 0))(one, own)
    assert metrics["loss"][-10:].mean() < metrics["loss"][:10].mean()
    return experiment, state


def dependence(trained, mask, layers=LAYERS):
    """bool [T, T]: whether row i of the outputs of the first layers changes when input j is another token."""
    from flax import nnx

    experiment, state = trained
    model = nnx.merge(nnx.graphdef(experiment.abstract), state["params"], state["frozen"])
    model.masks = (mask,) * LAYERS
    inputs = np.random.default_rng(0).integers(0, 12, (4, T))
    changed = np.stack([inputs, *((inputs + (np.arange(T) == j) * 5) % 12 for j in range(T))]).reshape(-1, T)

    @jax.jit
    def streams(inputs):
        sites = Sites(record=[f"layers.{layers - 1}.stream"])
        model(inputs, TOKENS, 4, sites)
        return sites.recorded[f"layers.{layers - 1}.stream"]

    found = np.asarray(streams(changed)).reshape(T + 1, 4, T, -1)
    return (found[1:] != found[:1]).any(axis=(1, 3)).T


@pytest.mark.parametrize("name", spec.names("masks"))
def test_rows_depend_on_what_reach_says_and_on_nothing_else(trained, name):
    experiment, _ = trained
    mask = spec.build("masks", compatibility.example("masks", name), "mask")
    blueprint = dataclasses.replace(experiment.blueprint, masks=(mask,) * LAYERS)
    reach = experiment.architecture.reach(blueprint, TOKENS.told_context(4), 4)
    found = dependence(trained, mask)
    assert not (found & ~reach).any(), "a row depends on what no path leads to"
    assert (found | ~reach).all(), "reach claims what has no influence"


@pytest.mark.parametrize(
    ("text", "safe"), [("modality_mutual(1, 2)", True), ("modality_mutual(1, 2) | modality_mutual(1, 0)", False)]
)
def test_the_two_traps(trained, text, safe):
    """One layer hides later questions, two show them; answers stay hidden unless they count as what images see."""
    mask = spec.build("masks", text, "mask")
    later = np.triu(np.ones((T, T), bool), 1)
    question, answer = np.ix_(ROLE == 2, ROLE == 2), np.ix_(ROLE == 0, ROLE == 0)
    assert not (dependence(trained, mask, 1) & later)[question].any()
    assert (dependence(trained, mask, 2) & later)[question].any()
    assert (dependence(trained, mask, LAYERS) & later)[answer].any() != safe
    assert not (dependence(trained, mask, 1) & later)[answer].any()
