"""`python -m fedft` is the `fedft` command."""

from fedft.cli.main import main

main()
