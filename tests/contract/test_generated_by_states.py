"""Generation by a state, over every operator that has one: it says what whole forward passes say."""

import jax
import numpy as np
from flax import nnx
from test_operators import EXAMPLES as OPERATORS

from positionbias import spec
from positionbias.config.build import build
from positionbias.generation.generate import generate
from positionbias.models.parameters import Frozen

AXIS, EXAMPLES = "operators", {name: texts[-1:] for name, texts in OPERATORS.items()}
PROMPT = np.random.default_rng(0).integers(0, 14, (3, 10))


def test_a_state_says_what_whole_passes_say(spec_text, tiny):
    """Alone and beside softmax; with padding in front where no context is read apart."""
    operator = spec.build("operators", spec_text, "operator")
    if not operator.carries:
        assert operator.steps or operator.whole
        return
    apart = "context" in operator.reads_tokens
    config = {
        "task": "reversal_in_context(pairs=3, names=6)",  # 11 rows, of which 9 are the context
        "model.layers": 2,
        "model.operator": f"[{spec_text}, softmax]",
        "model.position": "rope" if operator.uses_rotation else "none",
        "model.mask": "context_bidirectional" if apart else "causal",
        "model.init.query": "fan_in(scale=3.0)",
        "model.init.readout": "fan_in(scale=3.0)",
    }
    experiment = build(tiny(config))
    _, params, frozen = nnx.split(jax.jit(experiment.initialise)(jax.random.key(0)), nnx.Param, Frozen)
    valid = None if apart else np.arange(10) >= np.array([[0], [6], [3]])
    found = [
        generate(experiment, {"params": params, "frozen": frozen}, PROMPT, 7, valid=valid, cached=cached)
        for cached in (True, False)
    ]
    np.testing.assert_array_equal(found[0].tokens, found[1].tokens)
    np.testing.assert_allclose(found[0].outputs, found[1].outputs, rtol=0, atol=1e-4)
    assert len(np.unique(np.round(found[0].outputs[0, :, 0], 4))) > 1, "every row says something else"
