"""Operators that read another sequence whole, against loops in numpy: outputs, and slopes along random ways."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from operators_oracle import products, sigmoid
from test_operator_training import check_crossing
from toys import Reads

from positionbias import spec
from positionbias.config.build import build
from positionbias.errors import ConfigError
from positionbias.models.sites import Sites
from positionbias.operators import choosing
from positionbias.operators.softmax import Softmax
from positionbias.positions.base import Dims, Placed
from positionbias.tokens import sequential

B, T, S, N, H, K, D, E = 2, 7, 10, 2, 4, 3, 6, 5
SIZES = {"x": (T, D), "stream": (S, E), "q": (T, N, H), "k": (S, N, H), "v": (S, N, K)}
VALID_Q = np.array([[1, 1, 1, 0, 1, 1, 0], [0, 1, 1, 1, 1, 1, 1]], bool)
VALID_K = np.array([[1, 1, 1, 0, 1, 1, 1, 0, 1, 1], [0, 0, 1, 1, 1, 1, 1, 1, 0, 0]], bool)
PADDED = {
    "whole": (np.ones((B, T), bool), np.ones((B, S), bool)),
    "padded": (VALID_Q, VALID_K),
    "no context": (VALID_Q, VALID_K & [[True], [False]]),
    "no queries": (VALID_Q & [[False], [True]], VALID_K),
}
WAYS = {"all pairs": choosing.LONG, "gathered": 0}
BEHIND = S + np.arange(T)  # the context is stored in front, as an encoder reads it
NONE = Placed(spec.build("positions", "none", "position"))


class Across:
    """An operator on queries of one sequence, of T, and keys and values of another, of S, all drawn once."""

    def __init__(self, text, padding="whole", mask="bidirectional", places=BEHIND):
        self.operator, self.valid = spec.build("operators", text, "operator"), PADDED[padding]
        draw = np.random.default_rng(0)
        self.arrays = {name: draw.normal(size=(B, *size)).astype(np.float32) for name, size in SIZES.items()}
        declared = self.operator.parameters(Dims(D, N, H, S, value_size=K, stream_width=E)).items()
        self.params = {name: draw.normal(size=matrix.shape).astype(np.float32) for name, matrix in declared}
        self.aim = draw.normal(size=(B, T, D) if self.operator.reads == "stream" else (B, T, N, K))
        self.mask = spec.build("masks", mask, "mask")
        queries = sequential(T, index=places, position=places, valid=self.valid[0])
        self.tokens = queries, sequential(S, valid=self.valid[1])

    def run(self, given=None, site=None):
        """What the operator makes of its arrays and parameters, one tree."""
        given = {**self.arrays, **self.params} if given is None else given
        x, stream, *arrays = (given[name] for name in SIZES)
        params, told = {name: given[name] for name in self.params}, (*self.tokens, self.mask)
        if self.operator.reads == "stream":
            return self.operator.mix_across(x, stream, *told, params, Sites())
        params |= self.operator.projected(x, stream, params)
        return self.operator(*arrays, *told, NONE, params, site or Sites())

    def pattern(self):
        kept = {}
        self.run(site=Reads(lambda name, value: kept.setdefault(name, value)))
        return np.asarray(kept["pattern"])

    def check(self, formula):
        """Outputs and gradients are those of `formula`, of all arrays and parameters in float64.

        Gradients along ways that are drawn, by differences.
        """
        given = {name: np.asarray(x, np.float64) for name, x in {**self.arrays, **self.params}.items()}

        def loss(given):
            return jnp.sum(self.run(given) * self.aim)

        found, slopes = jax.jit(lambda given: (self.run(given), jax.grad(loss)(given)))({**self.arrays, **self.params})
        known = formula(given)
        assert np.isfinite(known).all()
        np.testing.assert_allclose(found, known, rtol=0, atol=1e-5 * max(1.0, np.abs(known).max()))
        assert (np.asarray(found)[~self.valid[0]] == 0).all()
        draw, step = np.random.default_rng(1), 1e-5
        for name, x in given.items():
            for way in draw.normal(size=(4, *x.shape)):
                ahead, back = (np.sum(formula({**given, name: x + h * way}) * self.aim) for h in (step, -step))
                known, found = (ahead - back) / (2 * step), np.sum(np.asarray(slopes[name], np.float64) * way)
                np.testing.assert_allclose(found, known, rtol=1e-4, atol=1e-4 * np.linalg.norm(way), err_msg=name)


def shares(scores, seen, axis):
    """A softmax along an axis of what is seen, zero where nothing is."""
    raised = np.where(seen, np.exp(scores - scores.max()), 0.0)
    total = raised.sum(axis=axis, keepdims=True)
    return np.divide(raised, total, out=np.zeros(raised.shape), where=total > 0)


def both(valid):
    """Who sees whom, [B, 1, T, S]."""
    return (valid[0][:, :, None] & valid[1][:, None])[:, None]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("padding", PADDED)
@pytest.mark.parametrize("more", [False, True])
def test_each_key_sends_its_value_in_shares_to_all_queries(more, padding, way, monkeypatch):
    monkeypatch.setattr(choosing, "LONG", WAYS[way])
    one = Across(f"reversed(selector={more}, gate={more})", padding)

    def formula(given):
        weights = shares(products(given["q"], given["k"]) / np.sqrt(H), both(one.valid), axis=2)
        if more:
            chosen = np.exp(given["stream"] @ given["heads"] / 0.1)
            chosen = (
                chosen
                / chosen.sum(axis=-1, keepdims=True)
                * sigmoid(given["stream"] @ given["direction"] + given["offset"])
            )
            weights = weights * np.moveaxis(chosen, 2, 1)[:, :, None]
        return np.einsum("bnts,bsnk->btnk", weights, given["v"])

    one.check(formula)


def test_reversed_attention_is_softmax_turned_around():
    """The pattern is the transpose of that of softmax, with queries and keys exchanged."""
    one = Across("reversed", "padded")
    turned = shares(np.swapaxes(products(one.arrays["q"], one.arrays["k"]), 2, 3) / 2, both(one.valid[::-1]), axis=3)
    np.testing.assert_allclose(one.pattern(), np.swapaxes(turned, 2, 3), atol=1e-6)
    sent = one.pattern().sum(axis=2)
    np.testing.assert_allclose(sent, np.broadcast_to(VALID_K[:, None], sent.shape), atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("padding", PADDED)
@pytest.mark.parametrize(("region", "top"), [(3, 2), (4, 1), (20, 3)])
def test_regions_of_queries_choose_regions_of_keys(region, top, padding, way, monkeypatch):
    """The last ones are cut short, on both sides; of 20, each sequence is one."""
    monkeypatch.setattr(choosing, "LONG", WAYS[way])
    one = Across(f"routing(region={region}, top={top}, causal=False)", padding)

    def formula(given):
        seen = np.zeros((B, 1, T, S), bool)
        for b in range(B):
            rows, columns = (
                [[i for i in range(start, min(start + region, len(valid))) if valid[i]] for start in starts]
                for valid, starts in zip(
                    (one.valid[0][b], one.valid[1][b]), (range(0, T, region), range(0, S, region)), strict=True
                )
            )
            for asked in filter(None, rows):
                mean = given["q"][b, asked].mean(axis=0)
                suits = {u: np.sum(mean * given["k"][b, keys].mean(axis=0)) for u, keys in enumerate(columns) if keys}
                for u in sorted(suits, key=suits.get, reverse=True)[:top]:
                    seen[b, 0][np.ix_(asked, columns[u])] = True
        weights = shares(products(given["q"], given["k"]) / np.sqrt(H), seen, axis=3)
        return np.einsum("bnts,bsnk->btnk", weights, given["v"])

    one.check(formula)


def hashes(x, directions):
    """Places in the Gray code of the signs on the directions, [B, N, T]."""
    signs = (np.einsum("btnh,hp->bntp", x, directions) > 0).astype(int)
    gray = [i ^ (i >> 1) for i in range(2 ** directions.shape[1])]
    return np.vectorize(gray.index)(signs @ (2 ** np.arange(directions.shape[1])[::-1]))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("padding", PADDED)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("samples", [0, 4])
def test_sorted_queries_meet_sorted_keys(samples, causal, padding, way, monkeypatch):
    """In blocks of three, the last of them ragged; what is drawn stands for those of other blocks."""
    monkeypatch.setattr(choosing, "LONG", WAYS[way])
    one = Across(f"hyper_attention(causal={causal}, block=3, samples={samples}, exact=1, projections=5)", padding)
    directions = np.asarray(jax.random.normal(jax.random.key(0), (H, 5)), np.float64)
    drawn = one.operator._drawn(N, S, 0)

    def formula(given):
        bins = [hashes(given[name], directions) for name in "qk"]
        times = np.zeros((B, N, T, S))
        for b, n in np.ndindex(B, N):
            rows, keys = (np.flatnonzero(valid[b]) for valid in one.valid)
            rows, keys = (
                sorted(x, key=lambda i, h=h: (h[b, n, i], i)) for x, h in zip((rows, keys), bins, strict=True)
            )
            for (place, i), (other, j) in itertools.product(enumerate(rows), enumerate(keys)):
                if causal:
                    before = sum(bins[1][b, n, key] < bins[0][b, n, i] for key in keys)
                    mine = min(before, len(keys) - 1) // 3
                else:
                    mine = place * -(-len(keys) // 3) // len(rows)
                times[b, n, i, j] = 1 if other // 3 == mine else drawn[n, j] * S / max(samples, 1)
        scores = products(given["q"], given["k"]) / np.sqrt(H) + np.log(np.where(times > 0, times, 1))
        return np.einsum("bnts,bsnk->btnk", shares(scores, times > 0, axis=3), given["v"])

    one.check(formula)


BETWEEN = np.array([4, 0, 20, 7, 2, 9, 5])  # places of queries that are stored among keys, in no order


@pytest.mark.parametrize("padding", PADDED)
@pytest.mark.parametrize("mask", ["bidirectional", "causal"])
@pytest.mark.parametrize("slots", [1, 3])
def test_slots_hold_the_mean_of_another_sequence(slots, mask, padding):
    """Of all its tokens, or of those stored up to the query."""
    one = Across(f"orthogonal_memory(slots={slots}, window=0)", padding, mask, BETWEEN)
    seen = both(one.valid)[:, 0] & ((np.arange(S) <= BETWEEN[:, None]) | (mask == "bidirectional"))

    def formula(given):
        x, stream = (given[name] for name in ("x", "stream"))
        q, token = (np.reshape(y @ given[m], (B, -1, N, H)) for y, m in ((x, "query"), (stream, "token")))
        read = np.zeros((B, T, N, H))
        for b, t, n in np.ndindex(B, T, N):
            if seen[b, t].any():
                basis = np.linalg.qr(given["basis"][n])[0]
                slots = basis * (token[b, seen[b, t], n].mean(axis=0) @ basis)  # [H, R]
                raised = np.exp(q[b, t, n] @ slots / np.sqrt(H))
                read[b, t, n] = slots @ (raised / raised.sum())
        return read.reshape(B, T, -1) @ given["output"]

    one.check(formula)


DENSE = [
    "routing(region=3, top=4, causal=False)",
    "hyper_attention(block=10, samples=0, exact=1)",
    "hyper_attention(causal=False, block=1, exact=10)",
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("operator", DENSE)
def test_what_leaves_nothing_out_is_dense_cross_attention(operator, way, monkeypatch):
    monkeypatch.setattr(choosing, "LONG", WAYS[way])
    found, known = (jax.jit(Across(text, "padded").run)() for text in (operator, "softmax"))
    np.testing.assert_allclose(found, known, rtol=1e-5, atol=1e-6)


SPLIT = {
    "task": "associative_recall(pairs=4, keys=8, values=8, delays=3)",
    "model.position": "none",
    "model.mask": "bidirectional",
    "model.architecture": "encoder_decoder",
}
BUILT = {
    "reversed(selector=True, gate=True)": "concatenate",
    "routing(region=2, top=2, causal=False)": "add",
    "hyper_attention(causal=False, block=2, samples=2, exact=1)": "add",
    "orthogonal_memory(slots=2, window=0)": "concatenate",
}


@pytest.mark.parametrize(("operator", "residual"), BUILT.items())
def test_it_learns_between_an_encoder_and_a_decoder(operator, residual, tiny):
    """Every parameter of cross attention matters to the loss."""
    wanted = {"model.operator": operator, "model.layers": 2, "model.residual": residual}
    check_crossing(tiny(SPLIT | wanted))


def test_a_causal_decoder_reads_by_hashes_what_its_encoder_gives(tiny):
    """No row tells of a later one, as queries are not sorted."""
    wanted = {
        "task.scratch": True,
        "model.operator": "hyper_attention(block=2, samples=2, exact=1)",
        "model.architecture": "encoder_decoder(encoder_mask=causal)",
    }
    experiment = build(tiny(wanted))
    condition = experiment.task.conditions()[0]
    context = experiment.task.context_length(condition)
    rows = experiment.reach(condition)[context:, context:]
    np.testing.assert_array_equal(rows, np.tri(len(rows), dtype=bool))
    model, batch = experiment.initialise(jax.random.key(0)), experiment.task.batch(jax.random.key(1), condition, 4)
    last = batch.inputs.at[:, -1].set((batch.inputs[:, -1] + 1) % 4)
    found, other = (model(x, batch.tokens, context, Sites()) for x in (batch.inputs, last))
    np.testing.assert_allclose(found[:, :-1], other[:, :-1], atol=1e-6)
    assert np.abs(found[:, -1] - other[:, -1]).max() > 1e-4


def test_queries_that_are_mixed_are_within_reach(tiny, monkeypatch):
    """Under a causal mask a row of the decoder would depend on later ones by no other way."""
    experiment = build(tiny({"task.scratch": True, "model.architecture": "encoder_decoder"}))
    condition = experiment.task.conditions()[0]
    context = experiment.task.context_length(condition)
    rows = experiment.reach(condition)[context:, context:]
    np.testing.assert_array_equal(rows, np.tri(len(rows), dtype=bool))
    monkeypatch.setattr(Softmax, "mixes_queries", True)
    assert experiment.reach(condition)[context:].all()


def test_a_stream_that_reads_another_needs_no_recurrence(tiny):
    """As a run that begins asks, of streams of unequal lengths."""
    assert build(tiny(SPLIT | {"model.operator": "orthogonal_memory(slots=2, window=0)"})).recurrences(2, "cpu") == []


def test_a_window_is_of_one_sequence(tiny):
    told = (
        r"^model\.operator: orthogonal_memory\(slots=2\) does not work as cross attention, which cross attention of"
        r" decoder layer 0 needs, as its window, unless it is 0, looks back from a place in one sequence; allowed: "
    )
    with pytest.raises(ConfigError, match=told):
        build(tiny(SPLIT | {"model.operator": "orthogonal_memory(slots=2)"}))


def test_a_mask_that_hides_some_of_the_other_sequence_is_refused(tiny):
    wanted = {"model.operator": "reversed", "model.architecture": "encoder_decoder(cross_mask=sliding_window(4))"}
    told = (
        r"^model\.operator: reversed.* does not work as causal cross attention, which cross attention of decoder layer"
        r" 0 needs under model\.architecture\.cross_mask = sliding_window\(width=4\), as a share tells of all who"
        r" receive, those before a key too; allowed: model\.architecture\.cross_mask = bidirectional, or an operator"
        r" that does, such as softmax\.$"
    )
    with pytest.raises(ConfigError, match=told):
        build(tiny(SPLIT | wanted))
