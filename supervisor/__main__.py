"""`python -m supervisor`: the same as `forkshim`."""

from supervisor.cli.main import main

main()
