"""Specs that mean harm: nothing of them is evaluated, and each is refused in one sentence, however large or deep."""

import subprocess
import sys

import pytest

from positionbias import spec, train
from positionbias.config.cli import apply_overrides
from positionbias.config.resolve import resolve
from positionbias.errors import HALF
from positionbias.spec import ConfigError

DEEP, MANY = 10_000, 1_000_000
# What a spec may not be, as a mask and as a pattern of masks.
NEVER = {
    "an attribute": "causal.__class__",
    "a method": "causal.__class__.__mro__[1].__subclasses__()",
    "an import and a call": "__import__('os').system('true')",
    "a call of a call": "causal()()",
    "an item": "causal[0]",
    "a power": "9**9**9**9",
    "a product of text": "'a' * 10**10",
    "a lambda": "(lambda: 0)()",
    "a comprehension": "[causal for _ in 'a']",
    "a named value": "(x := causal)",
    "a generator": "(yield)",
    "a coroutine": "await causal",
    "a choice": "causal if 1 else causal",
    "text that computes": "f'{1 + 1}'",
    "two statements": "causal; causal",
    "two lines": "causal\ncausal",
    "brackets, deep": "(" * DEEP + "causal" + ")" * DEEP,
    "lists, deep": "[" * DEEP + "]" * DEEP,
    "calls, deep": "f(" * DEEP + ")" * DEEP,
    "tables, deep": "{" * DEEP + "}" * DEEP,
    "brackets left open": "(" * DEEP,
    "signs": "-" * MANY + "1",
    "negations": "not " * DEEP + "causal",
    "combinations": "causal" + " & causal" * DEEP,
    "choices": "causal if 1 else " * DEEP + "causal",
    "lambdas": "lambda: " * DEEP + "causal",
    "attributes": "causal" + ".a" * DEEP,
    "comparisons": "causal" + " < causal" * DEEP,
    "products of lists": "[causal]" + " * 1000" * 4,
    "products of lists in lists": "[[[causal] * 1000] * 1000] * 1000",
    "one long product": "[causal] * 10**9",
    "a number of many digits": "[causal] * " + "9" * MANY,
    "commas": "," * MANY,
    "a null byte": "cau\0sal",
    "a null byte in text": "prefix('\0')",
    "half a character": "caus\udcffal",
    "no width": "caus\u200bal",
    "from right to left": "\u202ecausal",
    "brackets of another script": "causal（）",
}
# What reads as a spec, of which no mask is made.
UNKNOWN = {
    "a name of Python's": "__import__",
    "a function of Python's": "open('HERE', 'w')",
    "a call inside": "prefix(open('HERE', 'w'))",
    "a call inside that is named": "prefix(length=open('HERE', 'w'))",
    "a call inside a list": "prefix(length=[open('HERE', 'w')])",
    "an import inside": "prefix(length=__import__('os').system('touch HERE'))",
    "text that computes, inside": "prefix(length=f'{open(\"HERE\", chr(119))}')",
    "a power inside": "prefix(length=9**9**9)",
    "a product inside": "prefix(length=[0] * 10**9)",
    "text of a format": "prefix(length='{0.__class__}')",
    "a letter of another script": "c\u0430usal",
    "a name without end": "a" * MANY,
    "text without end": "prefix(length='" + "x" * MANY + "')",
    "a list without end": "prefix(length=[" + "0," * 50_000 + "])",
    "digits without end": "prefix(length=" + "9" * MANY + ")",
    "more digits than Python reads": "prefix(length=" + "9" * 5000 + ")",
    "digits that no chip has": "prefix(length=" + "9" * 4000 + ")",
    "arguments without end": "prefix(" + "1," * 50_000 + ")",
    "names without end": "prefix(" + ", ".join(f"a{n}=1" for n in range(50_000)) + ")",
    "signs inside": "prefix(length=" + "-" * DEEP + "1)",
    "sums inside": "prefix(length=1" + " + 1" * DEEP + ")",
    "tables inside": "prefix(length=" + "{" * DEEP + "}" * DEEP + ")",
    "bytes": "prefix(length=b'1')",
    "a set": "prefix(length={1})",
    "a table of lists": "prefix(length={[]: 1})",
    "an imaginary number": "prefix(length=1j)",
    "nothing at all": "prefix(length=...)",
    "an endless number": "prefix(length=1e999)",
}


def sentence(call, *arguments):
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    told = str(caught.value)
    assert "\n" not in told
    assert told.endswith(".") or "did you mean" in told
    assert len(told) <= 2 * HALF + 3
    return told


@pytest.mark.parametrize("text", NEVER.values(), ids=NEVER)
def test_what_is_no_spec_is_refused_by_every_reader(text):
    for read in (spec.parse, spec.parse_several, lambda *given: spec.parse_layers(given[0], None, given[1])):
        if read is spec.parse_several and text == NEVER["commas"]:
            continue  # of which one more is put behind
        assert sentence(read, text, "model.mask").startswith("model.mask: ")


@pytest.mark.parametrize("text", UNKNOWN.values(), ids=UNKNOWN)
def test_what_is_no_mask_is_refused_and_nothing_of_it_runs(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = text.replace("HERE", str(tmp_path / "here"))
    assert sentence(spec.build, "masks", text, "model.mask").startswith("model.mask")
    base = {"name": "t", "task": "inverse_permutation(n=4)", "model": {"mask": text}}
    assert sentence(resolve, base).startswith("model.mask")
    base["model"] = {}
    assert sentence(lambda: resolve(apply_overrides(base, {"model.mask": text}))).startswith("model.mask")
    assert list(tmp_path.iterdir()) == []


def test_letters_that_python_takes_for_others_name_the_same_mask():
    assert spec.build("masks", "\uff43ausal", "x") == spec.build("masks", "causal", "x")


def test_a_long_sentence_keeps_both_ends():
    told = str(ConfigError("a: " + "x" * 5000 + "; allowed: b."))
    assert told.startswith("a: xxx")
    assert told.endswith("xxx; allowed: b.")
    assert len(told) == 2 * HALF + 3


def test_the_entry_refuses_them_in_one_line(tmp_path):
    (tmp_path / "c.py").write_text("def get_config():\n    return {'name': 't', 'task': 'inverse_permutation(n=4)'}\n")
    for field in ("model.mask", "model.position", "model.operator", "task", "objective"):
        for name in ("an import and a call", "lists, deep", "products of lists", "a null byte in text"):
            if "\0" not in NEVER[name]:  # which no command line can hold
                with pytest.raises(ConfigError, match=f"^{field}"):
                    train.main(["--config", str(tmp_path / "c.py"), f"--config.{field}={NEVER[name]}"])
    command = [sys.executable, "-m", "positionbias.train", "--config", "c.py"]
    command.append(f"--config.model.mask=[{'causal,' * 9000}]")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert len(done.stderr) < 2 * HALF + 20
    assert not (tmp_path / "runs").exists()
