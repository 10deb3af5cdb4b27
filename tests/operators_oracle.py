"""What tests of operators share: inputs, and what the parts around a recurrence are, in numpy and float64."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from positionbias import spec
from positionbias.models.sites import Sites
from positionbias.positions.base import Dims, Placed
from positionbias.tokens import Tokens, sequential

B, T, N, H, K, D = 2, 9, 2, 4, 3, 8
DIMS = Dims(width=D, heads=N, head_size=H, length=T, value_size=K)


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """One call of an operator: its arrays are numpy, drawn once."""

    operator: object
    mask: object
    tokens: Tokens
    x: np.ndarray  # the stream, of queries and keys
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    params: dict

    def run(self, **changed):
        """What the operator makes of it, or of other arrays."""
        x, q, k, v = (jnp.asarray(changed.get(name, getattr(self, name))) for name in "xqkv")
        params = {name: jnp.asarray(value) for name, value in self.params.items()}
        params |= self.operator.projected(x, x, params)
        tokens = changed.get("tokens", self.tokens)
        found = self.operator(q, k, v, tokens, tokens, self.mask, self.position, params, Sites())
        return np.asarray(found, np.float64)

    @property
    def position(self):
        return Placed(spec.build("positions", "none", "position"))

    def __getattr__(self, name):
        return np.asarray(self.params[name], np.float64)


def setting(text, mask="causal", seed=0, length=T, **fields):
    """The operator of this text with random inputs and parameters."""
    operator = spec.build("operators", text, "operator")
    draw = np.random.default_rng(seed)
    shapes = {"x": (B, length, D), "q": (B, length, N, H), "k": (B, length, N, H), "v": (B, length, N, K)}
    arrays = {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    declared = operator.parameters(DIMS)
    params = {name: draw.normal(size=matrix.shape).astype(np.float32) for name, matrix in declared.items()}
    tokens = sequential(length, **fields)
    return Setting(operator, spec.build("masks", mask, "mask"), tokens, params=params, **arrays)


def close(found, known, tolerance=2e-5):
    """Within so much of the largest entry."""
    np.testing.assert_allclose(found, known, rtol=0, atol=tolerance * max(1.0, np.abs(known).max()))


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def silu(x):
    return x * sigmoid(x)


def softplus(x):
    return np.log1p(np.exp(x))


def normed(x):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6)


def heads(x):
    return x.reshape(*x.shape[:2], N, -1)


def convolved(x, kernel):
    """Each feature, one token after another."""
    found = np.zeros(x.shape)
    flat = kernel.reshape(len(kernel), *x.shape[2:])
    for t in range(x.shape[1]):
        for lag in range(min(len(kernel), t + 1)):
            found[:, t] += flat[lag] * x[:, t - lag]
    return found


def recurrence(q, k, v, keys=None, values=None, state=None):
    """o_t = q_t S_t, S_t = diag(keys_t) S_(t-1) diag(values_t) + k_t v_t', one step after another."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    keys = np.ones(k.shape) if keys is None else keys
    values = np.ones(v.shape) if values is None else values
    state = np.zeros((len(k), k.shape[2], k.shape[3], v.shape[3])) if state is None else state
    found = []
    for t in range(k.shape[1]):
        state = keys[:, t, :, :, None] * state * values[:, t, :, None, :] + np.einsum("bnh,bnk->bnhk", k[:, t], v[:, t])
        found.append(np.einsum("bnh,bnhk->bnk", q[:, t], state))
    return np.stack(found, axis=1)


def lower(scores):
    """Of [B, N, T, T], the pairs whose key is not later."""
    return np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, 0.0)


def products(q, k):
    return np.einsum("btnh,bsnh->bnts", np.asarray(q, np.float64), np.asarray(k, np.float64))


def mixed(weights, v):
    return np.einsum("bnts,bsnk->btnk", weights, np.asarray(v, np.float64))
