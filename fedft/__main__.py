"""`python -m fedft` is the `fedft` command."""

from fedft.cli import main

main()
