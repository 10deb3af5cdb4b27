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
        (["--impl", "cudnn", "--platform", "cpu"], "cannot do this: the platform is cpu"),
    ],
)
def test_mistakes_are_told_in_a_sentence(flags, words):
    with pytest.raises(ConfigError) as error:
        explain.main(flags)
    assert words in str(error.value)
