"""Sites: recorded, edited, and free when unused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.config.build import build
from positionbias.models.sites import Sites
from positionbias.spec import ConfigError


@pytest.fixture
def setting(tiny):
    experiment = build(tiny())
    condition = experiment.task.conditions()[0]
    model = jax.jit(experiment.initialise)(jax.random.key(0))
    batch = jax.jit(lambda key: experiment.task.batch(key, condition, 3))(jax.random.key(1))

    def call(site):
        return model(batch.inputs, batch.tokens, 4, site)

    return call


def test_every_documented_site_of_a_decoder_is_there(setting):
    sites = Sites(record=["*"])
    setting(sites)
    attention = ["input", "query_input", "key_input", "value_input", "query", "key", "value", "scores", "pattern"]
    attention += ["heads", "head_outputs", "output"]
    expected = ["embedding", *(f"layers.0.attention.{n}" for n in attention)]
    expected += ["layers.0.mlp.input", "layers.0.mlp.hidden", "layers.0.mlp.output", "layers.0.stream", "final"]
    assert list(sites.recorded) == expected
    shapes = {name.removeprefix("layers.0."): value.shape for name, value in sites.recorded.items()}
    assert shapes["embedding"] == shapes["stream"] == shapes["final"] == (3, 8, 16)
    assert shapes["attention.query"] == shapes["attention.heads"] == (3, 8, 2, 8)
    assert shapes["attention.pattern"] == shapes["attention.scores"] == (3, 2, 8, 8)
    assert shapes["mlp.hidden"] == (3, 8, 64)
    assert shapes["attention.input"] == shapes["mlp.input"] == (3, 8, 16)
    assert {shapes[f"attention.{n}"] for n in ("query_input", "key_input", "value_input", "head_outputs")} == {
        (3, 8, 2, 16)
    }


def test_patterns_are_causal_distributions(setting):
    sites = Sites(record=["layers.*.attention.pattern"])
    setting(sites)
    pattern = np.asarray(sites.recorded["layers.0.attention.pattern"])
    np.testing.assert_allclose(pattern.sum(axis=-1), 1, atol=1e-6)
    assert (np.triu(pattern, 1) == 0).all()


def test_edits_replace_add_and_scale(setting):
    plain = Sites(record=["final"])
    setting(plain)
    final = plain.recorded["final"]
    for kind, value, expected in (
        ("replace", jnp.float32(0), jnp.zeros_like(final)),
        ("add", jnp.ones(16), final + 1),
        ("scale", jnp.float32(2), final * 2),
    ):
        sites = Sites(record=["final"], edit={"final": (kind, value)})
        setting(sites)
        assert np.array_equal(sites.recorded["final"], expected)


def test_removing_all_attention_makes_rows_independent(setting):
    sites = Sites(record=["final"], edit={"layers.0.attention.output": ("scale", jnp.float32(0))})
    changed, plain = setting(sites), setting(Sites())
    assert not np.allclose(changed, plain)


def test_unused_sites_cost_nothing(setting):
    with_sites = jax.make_jaxpr(lambda: setting(Sites()))()

    class Nothing(Sites):
        def __call__(self, name, value):
            return value

    assert str(with_sites) == str(jax.make_jaxpr(lambda: setting(Nothing()))())


def test_unknown_names_and_kinds_are_refused(setting):
    sites = Sites(record=["layers.0.attention.patern"])
    setting(sites)
    with pytest.raises(ConfigError, match=r"did you mean 'layers.0.attention.pattern'"):
        sites.check()
    for wrong, right in (
        ("layers.*.attention.patern", "layers.*.attention.pattern"),
        ("*.patern", "*.pattern"),
        ("layers.*.attnetion.*", "layers.*.attention.*"),
        ("layer.*.mlp.*den", "layers.*.mlp.*den"),
        ("finall*", "final"),
    ):
        sites = Sites(record=[wrong])
        setting(sites)
        with pytest.raises(ConfigError, match=rf"unknown site '{re.escape(wrong)}', did you mean '{re.escape(right)}'"):
            sites.check()
    with pytest.raises(ConfigError, match="unknown kind 'remove'"):
        Sites(edit={"final": ("remove", jnp.zeros(()))})
