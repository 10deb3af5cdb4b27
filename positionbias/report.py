"""`python -m positionbias.report --workdir PATH`: one self-contained report.html for a run or sweep folder."""

from __future__ import annotations

from collections.abc import Sequence

from positionbias.config.cli import Parser, folder, parse_command_line, run_entry


def main(argv: Sequence[str]) -> int:
    """Write the report, print where it lies and return the exit code; ConfigError for a folder that is neither."""
    parser = Parser("python -m positionbias.report", "Write report.html of a run folder or of a sweep and its cells.")
    parser.add_argument("--workdir", required=True, help="a run folder or a sweep folder", metavar="PATH")
    arguments, _ = parse_command_line(parser, argv)
    from positionbias.reporting.report import write_report

    print(write_report(folder(arguments.workdir)))
    return 0


if __name__ == "__main__":
    run_entry(main)
