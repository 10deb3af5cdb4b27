"""The entry that tells which driver computes an attention."""

import pytest

from positionbias.errors import ConfigError
from positionbias.kernels import explain


def told(capsys, *argv):
    assert explain.main(list(argv)) == 0
    return capsys.readouterr().out.splitlines()


def test_the_choice_the_reasons_and_the_tiles(capsys):
    lines = told(capsys, "--platform", "tpu", "--length", "512")
    assert lines[0] == "on tpu: mosaic_tpu"
    assert "  cudnn: the platform is tpu, and cuDNN is for gpu" in lines
    assert "  xla_dense: could do it, if named" in lines
    assert lines[-1] == "by tiles of 128 x 128, 10 of 16 would be visited, 6 of them without a rule"


def test_a_plain_gpu_attention_is_cudnns_and_another_is_not(capsys):
    plain = ("--platform", "gpu", "--dtype", "bfloat16")
    assert told(capsys, *plain)[0] == "on gpu: cudnn"
    lines = told(capsys, *plain, "--position", "alibi")
    assert lines[0] == "on gpu: xla_chunked"
    assert "  cudnn: scores are changed by a rule" in lines


def test_what_pairs_more_than_arithmetic_can_is_told(capsys):
    lines = told(capsys, "--platform", "tpu", "--position", "fire", "--length", "64")
    assert any("a part of score comes of" in line and "computed outside" in line for line in lines)
    lines = told(capsys, "--platform", "tpu", "--position", "t5_bias", "--length", "64")
    assert not any("computed outside" in line for line in lines)


def test_a_scheme_with_products_of_its_own_has_no_driver(capsys):
    assert told(capsys, "--position", "mirrored_rope") == [
        "mirrored_rope has products of its own: the formula is computed as it stands, by no driver"
    ]


def test_recurrences_have_drivers_of_their_own(capsys):
    lines = told(capsys, "--kernel", "linear_attention", "--platform", "cpu", "--length", "64")
    assert lines[:-1] == [
        "on cpu: xla_quadratic",
        "  xla_chunked: could do it, if named",
        "  mosaic_tpu: the platform is cpu, and these kernels are for tpu",
        "  mosaic_tpu_interpret: could do it, if named",
        "  mosaic_gpu: the platform is cpu, and these kernels are for gpu",
    ]
    assert lines[-1].startswith("  mosaic_gpu_interpret: ")  # of 32 bits, or jax is too old
    lines = told(capsys, "--kernel", "linear_attention", "--platform", "tpu", "--decays", "key,value")
    assert lines[0] == "on tpu: mosaic_tpu"
    assert lines[1] == (
        "  xla_quadratic: value_log_decay is one of each channel, and no number for a pair of steps tells what is left"
    )
    for kernel in ("delta_rule", "linear_memory"):
        assert told(capsys, "--kernel", kernel, "--platform", "tpu")[0] == "on tpu: mosaic_tpu"
        large = told(capsys, "--kernel", kernel, "--platform", "tpu", "--head_size", "1024", "--chunk", "64")
        assert large[0] == "on tpu: xla_chunked"
        assert large[1].startswith("  mosaic_tpu: chunks of 64 steps with keys of 1024 and values of 1024 need about ")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--length", "0"], "--length: 0 is not allowed; allowed: 1 to 65536"),
        (["--heads", "4", "--key_heads", "3"], "--key_heads: 3 is not allowed; allowed: divisors of 4"),
        (["--impl", "mosaic"], "--impl: unknown impl 'mosaic', did you mean 'mosaic_tpu'"),
        (["--platform", "gpus"], "did you mean 'gpu'"),
        (["--dtype", "float8"], "--dtype: unknown dtype 'float8'"),
        (["--stats", "recieved"], "did you mean 'received'"),
        (["--mask", "casual"], "--mask: unknown mask 'casual', did you mean 'causal'"),
        (["--kernel", "delta"], "--kernel: unknown kernel 'delta', did you mean 'delta_rule'"),
        (["--kernel", "delta_rule", "--mask", "full"], "--mask: delta_rule has none; allowed: to leave it out."),
        (
            ["--kernel", "linear_attention", "--mask", "causal"],
            "--mask: linear_attention has none; allowed: to leave it",
        ),
        (
            ["--kernel", "linear_memory", "--position", "none"],
            "--position: linear_memory has none; allowed: to leave it",
        ),
        (["--mask", ""], "--mask: '' is not a spec"),
        (["--kernel", "linear_attention", "--decays", "keys"], "--decays: unknown decay 'keys', did you mean 'key'"),
        (["--kernel", "linear_attention", "--impl", "cudnn"], "--impl: unknown impl 'cudnn'"),
        (["--kernel", "linear_attention", "--decays", "key,head"], "head and key are both of keys; allowed: one"),
        (["--chunk", "16"], "--chunk: attention has none; allowed: to leave it out."),
        (["--kernel", "linear_memory", "--chunk", "0"], "chunk = 0 is not allowed; allowed: a whole number from 1."),
        (["--position", "mirrored_rope", "--impl", "xla_dense"], "--impl: 'xla_dense' reads products of queries and"),
        (["--impl", "cudnn", "--platform", "cpu"], "cannot do this: the platform is cpu"),
    ],
)
def test_mistakes_are_told_in_a_sentence(flags, words):
    with pytest.raises(ConfigError) as error:
        explain.main(flags)
    assert words in str(error.value)
