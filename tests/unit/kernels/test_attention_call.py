"""Arrays, names and sizes that a call refuses as they do not fit together, the driver it takes, and what it returns."""

import dataclasses
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernels_oracle import drivers, fused, posed_with

from positionbias import kernels, spec
from positionbias.errors import ConfigError
from positionbias.kernels import PerHead, PerKey, PerQuery, Relative, Scalar, attention, choice
from positionbias.kernels.softmax_attention import ladder
from positionbias.masks.order import Causal
from positionbias.tokens import sequential


def zeros(*shape, dtype=jnp.float32):
    return jnp.zeros(shape, dtype)


B, T, S, N, G, H = 2, 6, 9, 4, 2, 8
Q, K = zeros(B, T, N, H), zeros(B, S, G, H)
CAUSAL, FREE = spec.build("masks", "causal", "mask"), spec.build("masks", "bidirectional", "mask")
BATCH_OF_THREE = sequential(T)._replace(valid=np.ones((3, T), bool))


def reading(s, b, h, q, k, x):
    return s + x


# Arguments of a call that is wrong in one place, and words of its one sentence.
REFUSED = {
    "three axes": (
        {"q": zeros(T, N, H)},
        "q [6, 4, 8], k [2, 9, 2, 8], v [2, 9, 2, 8] are not allowed; allowed: q [B, T",
    ),
    "no keys": ({"k": zeros(B, 0, G, H), "v": zeros(B, 0, G, H)}, "none of them 0"),
    "heads": ({"q": zeros(B, T, 3, H)}, "do not fit together; allowed: q [B, T, N, H], k [B, S, G, H]"),
    "sizes": ({"q": zeros(B, T, N, 4)}, "do not fit together"),
    "batch": ({"v": zeros(1, S, G, H)}, "v [1, 9, 2, 8] do not fit together"),
    "keys and values": ({"v": zeros(B, S + 1, G, H)}, "do not fit together"),
    "groups of values": ({"v": zeros(B, S, 1, H)}, "do not fit together"),
    "types": ({"q": Q.astype(jnp.bfloat16)}, "q, k and v are of ['bfloat16', 'float32']; allowed: one floating type"),
    "whole numbers": ({name: zeros(B, S, G, H, dtype=jnp.int32) for name in "qkv"}, "['int32']; allowed: one floating"),
    "key_bias by query head": (
        {"key_bias": zeros(B, N, S)},
        "key_bias has shape [2, 4, 9]; allowed: [B, G, S] = [2, 2, 9]",
    ),
    "one block size": ({"block_sizes": (16,)}, "block_sizes = (16,) is not allowed; allowed: two whole numbers from 1"),
    "block of nothing": ({"block_sizes": (16, 0)}, "block_sizes = (16, 0) is not allowed"),
    "block of a half": ({"block_sizes": (16, 0.5)}, "block_sizes = (16, 0.5) is not allowed"),
    "stats as text": ({"stats": "lse"}, "stats = 'lse' is text; allowed: a list of names, such as ['lse']"),
    "unknown statistic": ({"stats": ["entropi"]}, "stats: unknown statistic 'entropi', did you mean 'entropy'?"),
    "statistic without normalisation": (
        {"stats": ["received", "lse"], "normalise": False},
        "stats: 'lse' needs normalised weights; allowed without: 'received', 'block_mass'",
    ),
    "dropout without a seed": ({"dropout": 0.1}, "dropout = 0.1 is not allowed; allowed: (rate, seed)"),
    "dropout of all": ({"dropout": (1.0, 3)}, "a rate from 0 to 0.999"),
    "dropout of less than nothing": ({"dropout": (-0.1, 3)}, "a rate from 0 to 0.999"),
    "a broken seed": ({"dropout": (0.1, 0.5)}, "dropout has the seed 0.5; allowed: a whole number"),
    "a seed for each example": (
        {"dropout": (0.1, np.arange(2))},
        "dropout has the seed int64[2]; allowed: a whole number",
    ),
    "tokens without a mask": (
        {"tokens": (sequential(T), sequential(S))},
        "tokens are what a Mask reads, and mask is none",
    ),
    "tokens for a function": (
        {"tokens": (sequential(T), sequential(S)), "mask": lambda b, h, q, k: k <= q},
        "allowed: a Mask, or aux for a function",
    ),
    "other queries": ({"mask": CAUSAL, "tokens": (sequential(T + 1), sequential(S))}, "tokens of the queries"),
    "other keys": (
        {"mask": CAUSAL, "tokens": (sequential(T), sequential(T))},
        "tokens of the keys have fields of shape [6]",
    ),
    "other examples": (
        {"mask": CAUSAL, "tokens": (BATCH_OF_THREE, sequential(S))},
        "tokens of the queries have fields of shape [3, 6], [6]; allowed: [6] or [2, 6]",
    ),
    "a mask of numbers": ({"mask": lambda b, h, q, k: q - k}, "mask returns int32; allowed: booleans"),
    "a mask of another shape": (
        {"mask": lambda b, h, q, k: jnp.ones((S, T), bool)},
        "mask returns arrays of shape [[9, 6]]; allowed: one that broadcasts to [4, 6, 9]",
    ),
    "a score of another shape": (
        {"score": lambda s, b, h, q, k: jnp.ones((S, T))},
        "score returns arrays of shape [[9, 6]]; allowed: one that broadcasts to [4, 6, 9]",
    ),
    "a softmax as a score": (
        {"score": lambda s, b, h, q, k: jax.nn.softmax(s)},
        "score does more to a score than arithmetic on each entry (reduce_max); allowed: functions of the score",
    ),
    "an array as aux": (
        {"score": reading, "aux": {"x": zeros(T)}},
        "aux['x'] is a ArrayImpl; allowed: PerQuery, PerKey",
    ),
    "aux read by none": (
        {"aux": {"x": Scalar(1.0)}},
        "aux['x'] is read by neither mask nor score; allowed: names of their",
    ),
    "aux by query": (
        {"score": reading, "aux": {"x": PerQuery(zeros(S))}},
        "PerQuery, has shape [9]; allowed: [6] or [2, 6]",
    ),
    "aux by key": (
        {"score": reading, "aux": {"x": PerKey(zeros(1, S))}},
        "aux['x'], PerKey, has shape [1, 9]; allowed: [9] or",
    ),
    "aux by head": (
        {"score": reading, "aux": {"x": PerHead(zeros(G))}},
        "aux['x'], PerHead, has shape [2]; allowed: [4]",
    ),
    "aux of one": ({"score": reading, "aux": {"x": Scalar(zeros(1))}}, "aux['x'], Scalar, has shape [1]; allowed: []"),
    "aux by lag": (
        {"score": reading, "aux": {"x": Relative(zeros(T + S))}},
        "aux['x'], Relative, has shape [15]; allowed: [14] or [4, 14]",
    ),
    "unknown driver": ({"impl": "mosaik_tpu"}, "impl: unknown driver 'mosaik_tpu', did you mean 'mosaic_tpu'?"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    wrong, words = REFUSED[name]
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        attention(**{"q": Q, "k": K, "v": K, **wrong})
    sentence = str(caught.value)
    assert sentence.endswith((".", "?"))
    assert len(re.findall(r"[.?]( |$)", sentence)) <= 2, "one sentence, and at most a guess"
    assert "\n" not in sentence


def test_nothing_of_these_calls_is_wrong_but_one_thing():
    attention(Q, K, K)
    for impl in drivers():
        attention(Q, K, K, score=reading, aux={"x": PerHead(zeros(N))}, key_bias=zeros(B, G, S), impl=impl)


def test_a_driver_of_another_platform_is_refused():
    for impl in set(ladder.DRIVERS) - set(drivers()):
        words = f"impl = '{impl}' cannot do this: (the platform|jax|q) is .*; allowed: another driver, or None"
        with pytest.raises(ConfigError, match=words):
            attention(Q, K, K, impl=impl)


# A driver that is named and cannot do it gives its reason.


def test_what_is_there_for_all_pairs_is_told():
    lag, table = Relative(np.linspace(0, 1, T + S - 1, dtype=np.float32)), zeros(T, S)
    learned = posed_with(Q, K, K, score=lambda s, b, h, q, k: s + table[q, k])
    by_lag = posed_with(Q, K, K, score=reading, aux={"x": lag})
    assert re.fullmatch("a part of score .*gather.*", learned.dense_because)
    assert by_lag.dense_because is None
    assert [x.shape for x in by_lag.score.operands] == [(1, 1, T + S - 1)]


@pytest.mark.parametrize("impl", fused())
def test_fused_drivers_refuse_types_they_have_no_products_for(impl):
    half = Q.astype(jnp.float16), K.astype(jnp.float16), K.astype(jnp.float16)
    with pytest.raises(ConfigError, match="q is float16, and these kernels take float32 and bfloat16"):
        attention(*half, impl=impl)
    assert attention(*half).dtype == jnp.float16
    with jax.enable_x64(True):
        double = zeros(1, 4, 1, 8, dtype=jnp.float64)
        with pytest.raises(ConfigError, match="q is float64"):
            attention(double, double, double, impl=impl)
        assert attention(double, double, double).dtype == jnp.float64


@pytest.mark.parametrize("impl", fused())
def test_fused_drivers_refuse_operands_of_64_bits(impl):
    with jax.enable_x64(True):
        far = np.arange(S, dtype=np.int64)
        with pytest.raises(ConfigError, match="mask reads int64, and a kernel reads 32 bits at most"):
            attention(Q, K, K, mask=lambda b, h, q, k, x: x + (q & 1) > 2, aux={"x": PerKey(far)}, impl=impl)


# What is chosen.


def long(rows, dtype=jnp.float32):
    return tuple(jax.ShapeDtypeStruct((1, rows, 1, 8), dtype) for _ in "qkv")


def test_a_cpu_takes_chunks_from_so_many_queries_on():
    for told in ({"mask": CAUSAL}, {}):
        short, far = (choice(*long(rows), platform="cpu", **told) for rows in (ladder.LONG - 1, ladder.LONG))
        assert (short.driver.name, short.platform, short.passed_over) == ("xla_dense", "cpu", ())
        assert far.driver.name == "xla_chunked"
        assert far.passed_over == (("xla_dense", f"of {ladder.LONG} queries, chunks are faster and smaller"),)


def test_a_tpu_takes_its_kernel_or_says_why_not():
    assert choice(*long(256), mask=CAUSAL, platform="tpu").driver.name == "mosaic_tpu"
    passed = choice(*long(256, jnp.float16), platform="tpu")
    assert passed.driver.name == "xla_chunked"
    assert passed.passed_over == (("mosaic_tpu", "q is float16, and these kernels take float32 and bfloat16"),)
    odd = choice(*long(256), block_sizes=(100, 128), platform="tpu").passed_over
    assert odd == (("mosaic_tpu", "block_sizes[0] = 100 is no multiple of 8"),)
    narrow = choice(*long(256), block_sizes=(64, 64), platform="tpu").passed_over
    assert narrow == (("mosaic_tpu", "block_sizes[1] = 64 is no multiple of 128"),)


def test_other_platforms_take_chunks():
    assert choice(*long(8), platform="gpu").driver.name == "xla_chunked"


def test_the_platform_is_that_of_the_default_device():
    assert choice(*long(8)).platform == jax.default_backend()
    with jax.default_device(jax.devices("cpu")[0]):
        assert choice(*long(8)).platform == "cpu"


def test_a_driver_that_is_named_is_chosen_or_refused():
    assert choice(*long(8), impl="xla_chunked", platform="cpu").driver.name == "xla_chunked"
    with pytest.raises(ConfigError, match="the platform is gpu"):
        choice(*long(8), impl="mosaic_tpu", platform="gpu")


@pytest.mark.parametrize("platform", ["cpu", "tpu", "gpu"])
@pytest.mark.parametrize("rows", [8, 2048])
def test_the_last_of_a_ladder_can_do_it(platform, rows):
    problem = posed_with(*long(rows, jnp.float16))
    assert ladder.ladder(problem, platform)[-1][1] is None
    assert choice(*long(rows, jnp.float16), platform=platform).driver.name in ladder.DRIVERS


def test_drivers_are_known_by_their_names():
    assert all(name == driver.name for name, driver in ladder.DRIVERS.items())
    assert {"xla_dense", "xla_chunked", "mosaic_tpu_interpret"} <= set(drivers())


def test_choice_takes_the_arguments_of_attention():
    wanted = set(inspect.signature(attention).parameters)
    with pytest.raises(TypeError, match="nonsense"):
        choice(Q, K, K, nonsense=1)
    for name in wanted - {"q", "k", "v", "tokens"}:
        choice(Q, K, K, **{name: inspect.signature(attention).parameters[name].default})


# What is returned, and what functions are given.


def test_statistics_come_when_any_are_told_even_none():
    assert attention(Q, K, K).shape == (B, T, N, H)
    outputs, stats = attention(Q, K, K, stats=())
    assert outputs.shape == (B, T, N, H)
    assert stats == kernels.Stats()
    _, stats = attention(Q, K, K, stats=["received", "block_mass"], block_sizes=(4, 4))
    assert {name for name, x in stats._asdict().items() if x is not None} == {"received", "block_mass"}
    assert stats.received.shape == (B, N, S)
    assert stats.block_mass.shape == (B, N, 2, 3)


@pytest.mark.parametrize("impl", drivers())
def test_statistics_not_asked_for_are_none(impl):
    _, stats = attention(Q, K, K, stats=["entropy"], impl=impl, block_sizes=(8, 8))
    assert {name for name, x in stats._asdict().items() if x is not None} == {"entropy"}


def test_functions_are_given_what_they_name():
    seen = {}

    def mask(b, h, q, k, *, marked):
        seen["mask"] = [x.shape for x in (b, h, q, k, marked)], {x.dtype.name for x in (b, h, q, k)}
        return marked & (k <= q)

    def score(s, b, h, q, k, **aux):
        seen["score"] = s.shape, s.dtype.name, {name: x.shape for name, x in aux.items()}
        return s + aux["slope"] + aux["lag"]

    aux = {
        "marked": PerKey(np.ones((B, S), bool)),
        "slope": PerHead(zeros(N)),
        "lag": Relative(zeros(T + S - 1)),
    }
    attention(Q, K, K, mask=mask, score=score, aux=aux)
    assert seen["mask"] == ([(), (N, 1, 1), (T, 1), (1, S), (1, S)], {"int32"})
    assert seen["score"] == ((N, T, S), "float32", {"marked": (1, S), "slope": (N, 1, 1), "lag": (T, S)})


def test_tokens_are_in_order_unless_told():
    random = np.random.default_rng(0)
    q, k = (jnp.asarray(random.normal(size=(1, 6, 1, 4)), jnp.float32) for _ in "qk")
    by_function = attention(q, k, k, mask=lambda b, h, q, k: k <= q)
    np.testing.assert_array_equal(attention(q, k, k, mask=CAUSAL), by_function)
    np.testing.assert_array_equal(attention(q, k, k, mask=CAUSAL, tokens=(sequential(6), sequential(6))), by_function)


def test_what_a_library_would_know_is_told():
    square = zeros(1, 6, 1, 4)

    def plain(mask, *tokens, keys=square):
        return posed_with(square, keys, keys, mask=mask, tokens=tokens or None).plain

    assert plain(None) == "none"
    assert plain(FREE) == "none"
    assert plain(CAUSAL) == "causal"
    assert plain(CAUSAL, keys=zeros(1, 7, 1, 4)) is None
    assert plain(lambda b, h, q, k: k <= q) is None
    padded = sequential(6)._replace(valid=np.arange(6) < 5)
    moved = sequential(6)._replace(index=np.arange(6, dtype=np.int32)[::-1])
    for mask in (FREE, CAUSAL):
        assert plain(mask, padded, sequential(6)) is None
        assert plain(mask, sequential(6), padded) is None
        assert plain(mask, *(jax.tree.map(jnp.asarray, sequential(6)),) * 2) is None
    assert plain(CAUSAL, moved, sequential(6)) is None
    assert plain(FREE, moved, sequential(6)) == "none"


def test_a_problem_is_not_changed_once_posed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        posed_with(Q, K, K).scale = 1.0


@pytest.mark.parametrize(("length", "constant"), [(8, True), (2048, False)])
def test_what_a_mask_says_of_known_tokens_is_a_constant_up_to_a_size(length, constant):
    q = jax.ShapeDtypeStruct((1, length, 1, 4), jnp.float32)
    traced = jax.make_jaxpr(lambda q: attention(q, q, q, mask=Causal(), impl="xla_dense")[0])(q)
    assert any(np.shape(x)[-2:] == (length, length) for x in traced.consts) == constant
    assert (" ge " in str(traced) or " le " in str(traced)) != constant
