"""What compilers say is read, and told in a table; the compilers themselves are not here."""

import pytest

from positionbias.errors import ConfigError
from positionbias.kernels import compile_targets
from positionbias.kernels.compile_targets import Found
from positionbias.kernels.softmax_attention.ladder import DRIVERS

KERNEL = (
    '  %f.{n} = f32[8]{{0}} custom-call(%p), custom_call_target="tpu_custom_call", backend_config={{"custom_call_config'
    '":{{"body":"TUzv"}},"used_scoped_memory_configs":[{sizes}],"retry_config":{{"retry_count":"0"}}}}'
)
SIZE = '{{"memory_space":"1","offset":"0","size":"{}"}}'
PTXAS = """
ptxas info    : Compiling entry function 'body_mosaic_gpu_kernel' for 'sm_90a'
    0 bytes stack frame, {} bytes spill stores, {} bytes spill loads
ptxas info    : Used {} registers, used 2 barriers
"""


def test_vector_memory_is_that_of_the_largest_kernel():
    lines = [KERNEL.format(n=n, sizes=SIZE.format(size)) for n, size in enumerate((4096, 1469440, 555520))]
    other = '  %copy = f32[8]{0} fusion(%p), backend_config={"used_scoped_memory_configs":[' + SIZE.format(1 << 24)
    assert compile_targets.vector_memory("\n".join([*lines, other])) == 1469440
    assert compile_targets.vector_memory(other) is None
    assert compile_targets.vector_memory(KERNEL.format(n=0, sizes="")) is None


def test_registers_and_spills_are_those_of_all_kernels():
    told = PTXAS.format(0, 0, 72) + "ptxas info    : Compile time = 11.744 ms" + PTXAS.format(12, 8, 168)
    assert compile_targets.registers(told) == (168, 20)
    assert compile_targets.registers("nothing") == (None, 0)


@pytest.mark.parametrize(
    ("found", "platform", "text"),
    [
        ([], "tpu", "-"),
        ([Found(1.2), Found(2.0)], "tpu", "2 of 2, 3 s"),
        ([Found(1.2, None, 1 << 20), Found(0.9, "refused")], "tpu", "1 of 2, 2 s, 1.0 MiB"),
        ([Found(1.0, None, 72), Found(1.0, "spills", 168, 20)], "gpu", "1 of 2, 2 s, 168 registers, 20 bytes spilled"),
    ],
)
def test_a_cell_tells_what_was_compiled(found, platform, text):
    assert compile_targets.cell(found, platform) == text


def test_the_table_has_a_row_a_case_and_a_column_a_chip():
    v4, *_, h200 = compile_targets.TARGETS
    found = {("mosaic_tpu", "dropout", "v4"): [Found(1.0, None, 1 << 20)], ("xla_dense", "dropout", "v4"): [Found(2.0)]}
    assert compile_targets.table(found, [v4, h200]).splitlines() == [
        "| driver | case | v4 | h200 |",
        "| --- | --- | --- | --- |",
        "| `mosaic_tpu` | dropout | 1 of 1, 1 s, 1.0 MiB | - |",
        "| `xla_dense` | dropout | 1 of 1, 2 s | - |",
    ]


def test_an_error_is_told_by_its_first_line():
    assert compile_targets.short(ValueError("\n  too large  \nby far")) == "ValueError: too large"
    assert compile_targets.short(ValueError()) == "ValueError: "


def test_every_driver_that_is_there_for_a_chip_is_compiled():
    meant = {driver for target in compile_targets.TARGETS for driver in target.drivers}
    # cuDNN is a library of its own, which has nothing of ours to compile.
    assert meant == {name for name in DRIVERS if not name.endswith("_interpret")} - {"cudnn"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--target", "v5e,h20"], "--target: unknown target 'h20', did you mean 'h200'?"),
        (["--target", "v5e", "--driver", "mosaic_gpu"], "--driver: unknown driver 'mosaic_gpu', did you mean 'mosaic_"),
        (["--case", "forwards"], "--case: unknown case 'forwards', did you mean 'forward'?"),
        (["--cases", "forward"], "command line: unknown flag '--cases', did you mean '--case'?"),
    ],
)
def test_mistakes_are_told_in_a_sentence(flags, words):
    with pytest.raises(ConfigError) as error:
        compile_targets.main(flags)
    assert words in str(error.value)


def test_what_xla_does_on_this_machine_is_compiled_and_a_refusal_is_told():
    import jax

    target = compile_targets.Target("here", "cpu", {"platform": "cpu"}, "mosaic_tpu", ("float32",), (8,))
    mesh = jax.make_mesh((1,), ("chip",), devices=jax.devices()[:1])
    case = next(case for case in compile_targets.CASES if case.name == "forward")
    assert compile_targets.compiled(case, target, mesh, "xla_dense", "float32", 8).problem is None
    refused = compile_targets.compiled(case, target, mesh, "mosaic_tpu", "float32", 8)
    assert refused.problem == "RefusedError: the platform is cpu, and these kernels are for tpu"
