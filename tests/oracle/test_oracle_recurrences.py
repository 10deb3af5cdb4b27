"""Recurrences beside the plain PyTorch of flash-linear-attention, which its own kernels are tested against."""

import importlib.util
import pathlib

import delta_oracle
import jax
import numpy as np
import pytest
import recurrence_oracle

from positionbias.kernels import delta_rule, linear_attention
from positionbias.operators.retention import paces

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("einops", reason="einops is not installed, which flash-linear-attention needs")
FLA = importlib.util.find_spec("fla")
pytestmark = pytest.mark.skipif(FLA is None, reason="fla-core, of flash-linear-attention, is not installed")

LENGTH = 48
TOLERANCE = 2e-5  # of the largest entry


def naive(folder, function):
    """A function of `fla.ops.FOLDER.naive`, which needs no Triton, while the package that it is in does."""
    path = pathlib.Path(FLA.submodule_search_locations[0]) / "ops" / folder / "naive.py"
    spec = importlib.util.spec_from_file_location(f"naive_{folder}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, function)


def scaled(call):
    """A call of ours with queries by 1 / sqrt(H), as theirs have them."""
    return lambda told: call(**told | {"q": told["q"] * told["q"].shape[-1] ** -0.5})


def compare(call, theirs, told):
    """Outputs, the last state where theirs tells it, and all gradients of a sum of both."""

    def slopes(parts):
        return [np.cos(1.7 * np.arange(np.prod(x.shape)) + i).reshape(x.shape) for i, x in enumerate(parts)]

    tensors = {name: torch.tensor(x, requires_grad=True) for name, x in told.items()}
    parts = [x for x in theirs(tensors) if x is not None]
    sum((x * torch.tensor(s, dtype=x.dtype)).sum() for x, s in zip(parts, slopes(parts), strict=True)).backward()
    known = [x.detach().numpy() for x in parts] + [tensors[name].grad.numpy() for name in sorted(told)]

    def weighed(told):
        found = scaled(call)(told)[: len(parts)]
        weights = (s.astype(np.float32) for s in slopes(found))
        return sum((x * s).sum() for x, s in zip(found, weights, strict=True)), found

    (_, found), gradients = jax.jit(jax.value_and_grad(weighed, has_aux=True))(told)
    for number, (one, other) in enumerate(zip([*found, *jax.tree.leaves(gradients)], known, strict=True)):
        assert one.shape == other.shape
        most = np.abs(other).max()
        assert np.abs(one - other).max() <= TOLERANCE * max(most, 0.5), (number, most)
        assert most > 0.1


def test_simple_gated_linear_attention():
    """One decay a head and step."""
    function = naive("simple_gla", "naive_recurrent_simple_gla")
    told = recurrence_oracle.drawn(LENGTH, "scalar", decay=0.1)
    compare(
        linear_attention, lambda x: function(x["q"], x["k"], x["v"], x["log_decay"], None, x["initial_state"]), told
    )


def test_gated_linear_attention():
    """One decay a channel of keys."""
    function = naive("gla", "naive_recurrent_gla")
    told = recurrence_oracle.drawn(LENGTH, "key", decay=0.1)
    compare(
        linear_attention, lambda x: function(x["q"], x["k"], x["v"], x["log_decay"], x["initial_state"], True), told
    )


def test_linear_attention_normalised():
    function = naive("linear_attn", "naive_recurrent_linear_attn")
    told = recurrence_oracle.drawn(LENGTH, normalise=True, state=False)
    compare(
        lambda **told: linear_attention(**told, normalise=True),
        lambda x: function(x["q"], x["k"], x["v"], normalize=True),
        told,
    )


def test_retention():
    """The decay of every head is that of the operator `retention`."""
    function = naive("retention", "naive_retention")
    told = recurrence_oracle.drawn(LENGTH, state=False)
    decays = np.broadcast_to(np.log(paces(2)), told["q"].shape[:3])

    def theirs(x):
        return [function(*(x[name].transpose(1, 2) for name in "qkv")).transpose(1, 2)]

    compare(lambda **told: linear_attention(**told, log_decay=decays), theirs, told)


def test_delta_rule():
    function = naive("delta_rule", "delta_rule_recurrence")
    told = delta_oracle.drawn(LENGTH)
    told |= {"strength": delta_oracle.gate(told, 0.1, 0.9), "initial_state": delta_oracle.state(told)}

    def theirs(x):
        heads_first = [x[name].transpose(1, 2) for name in ("q", "k", "v", "strength")]
        o, state = function(*heads_first, x["initial_state"])
        return o.transpose(1, 2), state

    compare(delta_rule, theirs, told)


def test_gated_delta_rule():
    function = naive("gated_delta_rule", "naive_recurrent_gated_delta_rule")
    told = delta_oracle.drawn(LENGTH)
    told |= {"strength": delta_oracle.gate(told, 0.1, 0.9), "initial_state": delta_oracle.state(told)}
    told["log_decay"] = delta_oracle.gate(told, -0.5, 0.0, seed=3)

    def theirs(x):
        given = (x[name] for name in ("q", "k", "v", "strength", "log_decay"))
        return function(*given, initial_state=x["initial_state"], output_final_state=True)

    compare(delta_rule, theirs, told)
