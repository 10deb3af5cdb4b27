"""The first lines of the quickstart's metrics, as numbers."""

import numpy as np
import pytest

from positionbias.config.cli import load_config
from positionbias.config.resolve import resolve
from positionbias.training.loop import train
from positionbias.training.writers import read_metrics

pytestmark = pytest.mark.usefixtures("as_users")

LOSS = {
    20: [2.834551, 2.858956, 2.863660, 2.857006],
    40: [2.668296, 2.680420, 2.702683, 2.672783],
}
CHANGED = """
The quickstart no longer computes what it did. If that was not meant, a change altered initialisation, data, the model,
the loss or the update. If it was meant, say why in the commit and put the new numbers here; published runs made before
will not be reproduced by the new code.
"""


def test_the_first_losses_are_what_they_were(root, tmp_path):
    quickstart = str(root / "configs" / "quickstart.py")
    config = resolve(load_config(quickstart, {"evaluation.items": "16", "evaluation.influence_items": "4"}))
    train(config, tmp_path / "run", ["test"], lambda line: None, stop_after=40)
    found = {line["step"]: line["loss"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")}
    for step, expected in LOSS.items():
        np.testing.assert_allclose(found[step], expected, rtol=1e-4, err_msg=CHANGED)
