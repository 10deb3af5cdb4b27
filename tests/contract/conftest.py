"""How contract suites find members: every registered name of the module's AXIS, with the arguments of its EXAMPLES.

A suite defines `AXIS` and `EXAMPLES`, a table from names to the specs to test. A name that is not in the table is
tested with its default arguments; if it has none, the suite fails and says where to add an example.
"""

import pytest

from positionbias import spec


def pytest_generate_tests(metafunc):
    told = any("spec_text" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if "spec_text" in metafunc.fixturenames and not told:
        axis, examples = metafunc.module.AXIS, metafunc.module.EXAMPLES
        metafunc.parametrize("spec_text", [text for name in spec.names(axis) for text in examples.get(name, [name])])


@pytest.fixture
def built(spec_text, request):
    """The member that `spec_text` names, built."""
    try:
        return spec.build(request.module.AXIS, spec_text, request.module.AXIS)
    except spec.ConfigError as error:
        pytest.fail(f"{error} Add {spec_text!r} with its arguments to EXAMPLES in {request.module.__file__}.")
