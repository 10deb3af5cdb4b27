"""Real text: windows are the corpus's own bytes, rules are its frequencies, and what cannot be read is refused."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds

from positionbias import spec
from positionbias.spec import ConfigError
from positionbias.tasks import corpora
from positionbias.tasks.base import find_condition
from positionbias.tasks.text import Text

DOCUMENTS = {"train": ["ab\0a\n", "bbä"], "test": ["aaaaab"]}
BYTES = {"train": b"aba\n\0bb\xc3\xa4\0", "test": b"aaaaab\0"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dataset of three documents, as TFDS writes one."""
    made = tmp_path_factory.mktemp("datasets")

    class Small(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "small"
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = None

        def _info(self):
            features = {"words": tfds.features.Text(), "number": tfds.features.Scalar(np.int32)}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, manager):
            return {split: self._generate_examples(texts) for split, texts in DOCUMENTS.items()}

        def _generate_examples(self, texts):
            yield from ((i, {"words": text, "number": i}) for i, text in enumerate(texts))

    Small(data_dir=str(made), file_format="array_record").download_and_prepare()
    return str(made)


@pytest.fixture
def small(folder):
    return Text(dataset="small", window=3, data_dir=folder, feature="words")


def test_the_corpus_is_the_documents_as_bytes_each_ended_by_zero(small):
    assert {name: text.tobytes() for name, text in small.corpus().items()} == BYTES
    assert all(text.dtype == np.uint8 for text in small.corpus().values())
    assert small.corpus()["train"] is small.corpus()["train"], "read once"


@pytest.mark.parametrize("name", ["train", "test"])
def test_windows_begin_anywhere_and_every_row_says_the_next_byte(small, name):
    text, condition = BYTES[name], find_condition(small, name, "test")
    batch = jax.jit(lambda key: small.batch(key, condition, 512, small.corpus()))(jax.random.key(0))
    starts = set()
    for inputs, targets in zip(np.asarray(batch.inputs), np.asarray(batch.targets), strict=True):
        window = bytes(inputs.tolist()) + bytes(targets[-1:].tolist())
        assert bytes(targets.tolist()) == window[1:]
        starts |= {at for at in range(len(text) - 3) if text[at : at + 4] == window}
        assert window in text
    assert starts == set(range(len(text) - 3)), "every start is drawn, the last one too"
    assert np.asarray(batch.weights).all()
    np.testing.assert_array_equal(batch.source[0], [1, 2, -1])


def test_rules_are_frequencies_of_the_training_text(small):
    example = small.sample(jax.random.key(0), small.conditions()[0], {"train": jnp.asarray(list(b"ab\xc3\xa4"))})
    everything, nothing = jnp.ones((3, 3), bool), jnp.zeros((3, 3), bool)
    assert list(example.inputs) == list(b"ab\xc3")
    counts = {a: BYTES["train"][1:].count(a) for a in b"ab\xc3\xa4"}
    unigram = -np.log([(counts[target] + 1) / (9 + 256) for target in b"b\xc3\xa4"])
    bigram = -np.log([(1 + 1) / (2 + 256), (1 + 1) / (3 + 256), (1 + 1) / (1 + 256)])
    seen, unseen = small.losses(example, everything), small.losses(example, nothing)
    np.testing.assert_allclose(seen["unigram"], unigram, rtol=1e-5)
    np.testing.assert_allclose(seen["bigram"], bigram, rtol=1e-5)
    np.testing.assert_allclose(unseen["bigram"], unigram, rtol=1e-5)
    rules = small.baselines(example, everything)
    np.testing.assert_array_equal(rules["majority"], [1, 0, 0])  # b stands most often after another byte
    np.testing.assert_array_equal(rules["nearest"], [0, 0, 1])  # a is followed by \n or b: the lower one; b by b
    np.testing.assert_array_equal(rules["order_free"], rules["majority"])
    np.testing.assert_allclose(rules["chance"], 1 / 256)
    assert np.isnan(small.ceiling(example, everything)).all()


def test_the_text_that_is_shipped_is_all_there():
    plays = Text().corpus()
    assert {name: len(text) for name, text in plays.items()} == {"train": 610_046, "test": 111_414}
    assert bytes(plays["train"][:17].tolist()) == b"Scene I. Elsinore"
    assert all(text[-1] == corpora.END for text in plays.values())


def test_splits_may_be_parts_and_windows_stretch(folder):
    part = Text(dataset="small", window=2, data_dir=folder, feature="words", train="train[:1]")
    assert part.corpus()["train"].tobytes() == BYTES["train"][:5]
    assert part.stretched(2) == Text(dataset="small", window=4, data_dir=folder, feature="words", train="train[:1]")


def test_words_can_be_read_by_people():
    assert [Text().word(token) for token in b"a \n\0\x07\xff"] == ["a", "␣", "⏎", "∎", "\\x07", "\\xff"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"window": 0}, "window = 0 is not allowed; allowed: a whole number from 1 to 8192"),
        ({"window": 8193}, "window = 8193 is not allowed; allowed: a whole number from 1 to 8192"),
        ({"feature": ""}, "feature = '' is not allowed; allowed: a name"),
    ],
)
def test_a_bad_argument_is_refused(change, told):
    with pytest.raises(ConfigError, match=told):
        Text(**change)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"window": 8}, "window = 8 is not allowed; allowed: less than the 7 bytes of split 'test' of small"),
        ({"feature": "word"}, "small has no text 'word'; allowed features: words"),
        ({"feature": "number"}, "small has no text 'number'; allowed features: words"),
        ({"train": "trian"}, "split 'trian' of the dataset 'small' cannot be read"),
        ({"train": "train[:"}, "cannot be read"),
        ({"train": "train[:0]"}, "split 'train[:0]' of the dataset 'small' cannot be read"),
        ({"dataset": "smal"}, "the dataset 'smal' cannot be read"),
        ({"dataset": "../small"}, "cannot be read"),
        ({"data_dir": "/nowhere"}, "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(folder, change, told):
    given = {"dataset": "small", "window": 3, "data_dir": folder, "feature": "words", **change}
    with pytest.raises(ConfigError) as error:
        Text(**given).corpus()
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_corpus_that_does_not_fit_is_refused(monkeypatch, folder):
    monkeypatch.setattr(corpora, "MOST", 8)
    corpora.read.cache_clear()
    with pytest.raises(ConfigError, match=r"more than 8 bytes.*'train\[:10%\]'"):
        corpora.read("small", folder, "words", "train")


def test_without_the_libraries_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "grain", None)
    corpora.read.cache_clear()
    with pytest.raises(ConfigError, match=r"allowed: pip install -e '\.\[data\]' in the checkout\.$"):
        corpora.read("plays", None, "text", "train")


def test_the_text_is_where_the_package_is():
    assert (corpora.SHIPPED / "plays" / "1.0.0" / "dataset_info.json").is_file()
    assert pathlib.Path(spec.__file__).parent in corpora.SHIPPED.parents


def test_without_grain_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ConfigError, match=r"not installed; allowed: pip install -e '.\[data\]' in the checkout\.$"):
        corpora._libraries()
