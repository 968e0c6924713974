"""`npmerge`, and `python -m npmerge`."""

import signal


def main() -> None:
    """Run the command. Ctrl-C during the imports before it begins ends it without a word."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from npmerge import cli  # after that

    cli.main()


if __name__ == "__main__":
    main()
