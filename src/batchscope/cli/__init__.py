"""The command line: parses, calls one verb, prints. A short file per command; answers on stdout, progress on stderr."""

import sys


def main() -> None:
    """Entry point of the `batchscope` command. Ctrl-C has one sentence even while things are being imported."""
    try:
        from batchscope.cli import interrupt

        interrupt.remember()
        from batchscope.cli import launcher
        from batchscope.cli.app import run

        try:
            run()
        except SystemExit as ended:
            launcher.tell(ended.code)
            raise
    except KeyboardInterrupt:
        print("batchscope: stopped before anything was begun", file=sys.stderr)
        sys.exit(1)
