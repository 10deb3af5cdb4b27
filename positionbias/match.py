"""Make two configs of equal size: `python -m positionbias.match --config FILE --reference FILE2 [--by compute]`."""

from __future__ import annotations

from positionbias import runtime
from positionbias.config import cli
from positionbias.spec import ConfigError

PURPOSE = """\
Find the value of a field at which a config has as many trained parameters as another, or as many FLOPs."""


def parser() -> cli.Parser:
    """The flags of this entry."""
    made = cli.Parser("python -m positionbias.match", PURPOSE)
    made.add_argument("--config", required=True, metavar="FILE[:arg=value,...]", help="the config that is changed")
    made.add_argument("--reference", required=True, metavar="FILE[:arg=value,...]", help="the config that it matches")
    made.add_argument("--by", default="parameters", help="what is matched: parameters (default) or compute")
    made.add_argument(
        "--field",
        default="model.width",
        help="the field that is looked for: model.width (default), model.mlp_width or model.layers",
    )
    return made


def main(argv: list[str]) -> int:
    """Print the match and the override to use; returns the exit code."""
    given, overrides = cli.parse_command_line(parser(), argv)
    if given.field in dict(overrides):
        raise ConfigError(f"{given.field}: is what is looked for; allowed: leave it out, or another --field.")
    raw = cli.load_config(given.config, overrides)
    try:
        reference = cli.load_config(given.reference)
    except ConfigError as error:  # files are told as --config, which the other one is
        raise ConfigError(f"--reference{str(error).removeprefix('--config')}") from None
    with runtime.no_garbage():
        from positionbias.config import matching

    runtime.configure()
    print("\n".join(matching.matched(raw, reference, given.by, given.field).lines()))
    return 0


if __name__ == "__main__":
    cli.run_entry(main)
