"""How the package is installed; versions are pinned to minor ranges here and exactly in scripts/constraints-*.txt."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "positionbias" / "__init__.py").read_text()).group(1)

DATA = [
    "tensorflow-datasets>=4.9.10,<4.10",  # frozen evaluation sets and stored corpora; works without TensorFlow
    "array_record>=0.8.3,<0.9",  # their files
    "importlib_resources>=7.1,<8",  # which tensorflow-datasets imports and does not name
    "grain>=0.2.18,<0.3",  # reads stored corpora
]

ORACLE = [  # published software that tests/oracle compares with; of torch the release for CPUs is enough
    "torch>=2.13,<2.14",
    "transformer-lens>=3.9,<3.10",  # 3 is the last with HookedTransformer
    "auto-circuit>=1.0.1,<1.1",
    "pyvene>=0.1.8,<0.2",
    "fla-core>=0.6,<0.7",
    "fast-vit-rollout>=0.1.1,<0.2",
]

setup(
    name="positionbias",
    version=VERSION,
    description="Train small transformers from scratch to find where position bias and recall come from",
    long_description=(HERE / "README.md").read_text(encoding="utf-8") if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    packages=find_packages(include=["positionbias", "positionbias.*"]),
    package_data={"positionbias.tasks": ["stored/*/*/*"]},  # the text that comes with the package
    python_requires=">=3.11",
    install_requires=[
        "jax>=0.10.2,<0.13",  # 0.10 is the last for Python 3.11, 0.11 and later need 3.12
        "flax>=0.12.8,<0.13",  # nnx modules hold parameters
        "optax>=0.2.8,<0.3",  # update rules
        "orbax-checkpoint>=0.12.8,<0.13",  # checkpoints on disk
        "ml_collections>=1.1,<1.2",  # configs are edited as ConfigDicts
        "numpy>=2.0,<3",
        "scipy>=1.14,<2",  # Student's t
        "jaxtyping>=0.3.11,<0.4",  # shapes in signatures
        "matplotlib>=3.10,<3.12",  # figures of the report; imported only when one is drawn
    ],
    extras_require={
        "data": DATA,
        "test": ["pytest>=9,<10", "pytest-xdist>=3.8,<4", "hypothesis>=6.155,<7", *DATA],
        "oracle": ORACLE,
        "ray": ["ray>=2.60,<2.61"],  # cells of a sweep on several machines
        "check": ["ruff>=0.17,<0.18", "mypy>=2.4,<2.5"],
        "targets": [
            "jax[tpu,cuda13-local]>=0.12,<0.13"
        ],  # compilers for chips that are not there; Python 3.12 and later
        "gpu": ["jax[cuda13]>=0.10.2,<0.13"],
        "tpu": ["jax[tpu]>=0.10.2,<0.13"],
    },
)
