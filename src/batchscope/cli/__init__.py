"""The command line: parses, calls one verb, prints. One short file per command; answers on stdout, progress on stderr."""


def main() -> None:
    """Entry point of the `batchscope` command."""
    from batchscope.cli.app import run

    run()
