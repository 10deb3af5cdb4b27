"""Every analysis: arrays of the shapes it declares, of two replicas, finite, with what is drawn; refusals told."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from positionbias import spec
from positionbias.analysis import base, run
from positionbias.analysis.base import Subject
from positionbias.analysis.run import Asker, label, write
from positionbias.errors import ConfigError
from positionbias.evaluation import stored
from positionbias.replicas import stream

NAMES = spec.names("analyses")
SMALL = {
    "binding_mechanisms": "binding_mechanisms(updates=2)",
    "boundless_das": "boundless_das(updates=2, batch=4)",
    "contrastive_head_gating": "contrastive_head_gating('shifted', updates=2, seeds=1, batch=4)",
    "das": "das(dimensions=2, updates=2, batch=4)",
    "feature_circuit": "feature_circuit(updates=2, batch=4, steps=2)",
    "head_gating": "head_gating(updates=2, seeds=1, batch=4)",
    "linear_probe": "linear_probe(examples=16, updates=2)",
    "method_benchmark": "method_benchmark(variable='condition', examples=16, updates=2, batch=4)",
    "rank_one_knob": "rank_one_knob(updates=2, batch=4)",
    "sparse_features": "sparse_features(updates=2, batch=4)",
    "steering": "steering(examples=16)",
    "subspace_illusion": "subspace_illusion(updates=2, batch=4)",
}
# Those that go between conditions of the same items, and one of such a pair.
SIDED = {"method_benchmark": "use", "rank_one_knob": "use"}
# Programs of edges and of searches: twice more of them is a minute for a dozen members, whose splitting others share.
TRACED_LONG = {
    "binding_mechanisms", "boundless_das", "circuit", "circuit_overlap", "confounders", "das", "edge_attribution",
    "feature_circuit",
    "method_benchmark", "path_patching", "rank_one_knob", "sparse_features", "subspace_illusion",
}  # fmt: skip
LAYERS, HEADS, LENGTH, PAIRS, ROLES = 2, 2, 11, 4, 4
WIDTH, ITEMS = 8, 16


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
    """Every folder is loaded once: hundreds of tests ask four of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "load", functools.cache(run.load))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory, unmeasured_run):
    """A folder with two replicas of two layers, hardly trained, but that say some values."""
    raw = {
        "name": "analysed",
        "task": "associative_recall(pairs=4, keys=4, values=12, delays=3)",
        "model": {"layers": LAYERS, "width": WIDTH, "heads": HEADS, "mask": "causal", "position": "rope"},
        "optimizer": {"learning_rate": 1e-2},
        "train": {"steps": 120, "batch_size": 16, "replicas": 2, "log_every": 10},
        "evaluation": {"items": 4, "batch_size": 4, "influence_items": 4},
    }
    return unmeasured_run(raw, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def sided(tmp_path_factory, unmeasured_run):
    """Another one, with conditions of the same items, trained for long enough to answer some of them."""
    raw = {
        "name": "sided",
        "task": "context_or_prior(subjects=4, relations=1, objects=3, folds=2, documents=1)",
        "model": {"layers": LAYERS, "width": 8, "heads": HEADS, "mask": "causal", "position": "rope"},
        "optimizer": {"learning_rate": 1e-2},
        "train": {"steps": 20, "batch_size": 16, "replicas": 2, "log_every": 20},
        "evaluation": {"items": 4, "batch_size": 4, "influence_items": 4},
    }
    return unmeasured_run(raw, tmp_path_factory.mktemp("sided"))


@pytest.fixture
def folder(name, request):
    """The folder that an analysis can be asked of."""
    return request.getfixturevalue("sided" if name in SIDED else "made")


def build(name):
    return spec.build("analyses", SMALL.get(name, name), "analyses")


@functools.cache
def asked(folder, name):
    """Who asks an analysis, and what it found, which two tests look at."""
    asker = Asker(folder, [build(name)], items=ITEMS, condition=SIDED.get(name))
    (found,) = asker.asked()
    return asker, found


@pytest.mark.parametrize("name", NAMES)
def test_arrays_have_the_axes_that_are_declared(folder, name):
    asker, found = asked(folder, name)
    (analysis,) = asker.wanted
    assert analysis.shown in analysis.axes
    sizes = {"head": HEADS, "position": LENGTH, "distance": LENGTH, "row": LENGTH, "segment": PAIRS}
    sizes |= {"part": PAIRS + 1, "to_part": PAIRS + 1, "role": ROLES, "to_role": ROLES}
    sizes |= {"waits": LAYERS + 1, "transfers": LAYERS + 1, "value": WIDTH // HEADS, "step": 3, "to_step": 3}
    sizes |= {axis: len(names) for axis, names in found.labels.items()}
    for arrays in (found.trained, found.drawn):
        assert arrays.keys() == analysis.axes.keys()
        for key, axes in analysis.axes.items():
            assert arrays[key].shape == (2, *(sizes[axis] for axis in axes)), key
            assert np.isfinite(arrays[key]).all(), key
    differ = [key for key in analysis.axes if (found.trained[key] != found.drawn[key]).any()]
    assert differ, "training changes nothing of what it tells"
    write(asker.path(analysis), found, asker.settings(analysis))
    told = stored.read_analyses(folder)[asker.path(analysis).stem]
    assert told["analysis"] == spec.full(analysis)
    assert list(told["arrays"]) == [*analysis.axes, *analysis.across]
    assert all(analysis.axes[of] == () for pair in analysis.across.values() for of in pair)
    with np.load(asker.path(analysis).with_suffix(".npz")) as kept:
        np.testing.assert_array_equal(kept[analysis.shown], found.trained[analysis.shown])
    assert asker.there(analysis)
    assert list(asker.asked()) == [], "what is there is not asked again"
    assert not Asker(folder, [analysis], items=2, condition=SIDED.get(name)).there(analysis)


def test_what_is_read_beside_weights_is_that_of_the_replicas_asked(made):
    analysis = build("change_point")
    both, second = (Asker(made, [analysis], items=4, replicas=of).given[analysis]["loss"] for of in (None, [1]))
    np.testing.assert_array_equal(second, both[1:])
    assert (both[0] != both[1]).any()


def of_first(asker):
    """The first replica of a run, with its items, and the key that it is asked with."""
    (analysis,), run = asker.wanted, asker.run
    weights, given = (jax.tree.map(lambda x: x[0], tree) for tree in (run.weights, asker.given[analysis]))
    one = dataclasses.replace(run, replica=0, weights=weights, keys=run.keys[0])
    return Subject(one, asker.condition, ITEMS, given), stream(run.keys[0], f"analysis/{label(analysis)}")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in TRACED_LONG else []) for n in NAMES])
def test_the_same_key_finds_the_same_however_items_are_split(name, folder, monkeypatch):
    """And another one something else: the items, or what values are held against, are drawn by it.

    Pieces are of one item each, as of a long task or a prime number of items; all at once, they were asked before.
    """
    asker, found = asked(folder, name)
    (analysis,) = asker.wanted
    subject, asked_with = of_first(asker)
    if not analysis.draws:
        monkeypatch.setattr(base, "TOKENS", LENGTH)
    measure = jax.jit(lambda key: analysis.measure(subject, asker.layers[analysis], key))
    first, again, other = (jax.device_get(measure(key)) for key in (asked_with, asked_with, jax.random.key(1)))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert any((first[key] != other[key]).any() for key in analysis.axes)
    for key in () if analysis.draws else analysis.axes:
        np.testing.assert_allclose(first[key], found.trained[key][0], rtol=1e-4, atol=1e-5, err_msg=key)


@pytest.fixture(scope="module")
def beside(tmp_path_factory, unmeasured_run):
    """A folder with an encoder and a decoder."""
    raw = {
        "name": "beside",
        "task": "associative_recall(pairs=4, keys=4, values=12, delays=3)",
        "model": {"layers": 2, "width": 4, "heads": 1, "architecture": "encoder_decoder"},
        "train": {"steps": 4, "batch_size": 2, "replicas": 1, "log_every": 1},
        "evaluation": {"items": 2, "batch_size": 2, "influence_items": 2},
    }
    return unmeasured_run(raw, tmp_path_factory.mktemp("beside"))


@pytest.fixture(scope="module")
def lacking(tmp_path_factory, unmeasured_run):
    """Folders with models by their operator, which a test needs one of."""

    def run(operator, mlp=True):
        folder = tmp_path_factory.getbasetemp() / f"lacking_{operator}_{mlp}"
        if not folder.exists():
            raw = {
                "name": "lacking",
                "task": "associative_recall(pairs=4, keys=4, values=12, delays=3)",
                "model": {"layers": 1, "width": 4, "heads": 1, "operator": operator, "position": "none", "mlp": mlp},
                "train": {"steps": 1, "batch_size": 2, "replicas": 1, "log_every": 1},
                "evaluation": {"items": 2, "batch_size": 2, "influence_items": 2},
            }
            unmeasured_run(raw, folder)
        return folder

    return run


@pytest.mark.parametrize("name", NAMES)
def test_a_decoder_beside_an_encoder_is_refused_where_its_rows_are_not_those_of_the_inputs(name, beside):
    analysis = build(name)
    if analysis.any_rows:
        (found,) = Asker(beside, [analysis], items=4).asked()
        assert all(np.isfinite(x).all() for x in found.trained.values())
    else:
        with pytest.raises(ConfigError, match=f"--analyses: {name}.* of all 11 rows of inputs, not so with"):
            Asker(beside, [analysis])


@pytest.mark.parametrize("name", NAMES)
def test_a_model_without_what_is_read_is_refused(name, lacking):
    analysis = build(name)
    if not any("attention" in site for site in analysis.reads()):
        pytest.skip("every model has what it reads")
    operator = "fourier" if any(site.endswith("heads") for site in analysis.reads()) else "retention"
    mlp = not any(".mlp." in site for site in analysis.reads())
    with pytest.raises(ConfigError, match=f"--analyses: {name}.* which no layer has with model.architecture = decoder"):
        Asker(lacking(operator, mlp), [analysis])
