"""The `fedft` command: one file per family of subcommands. Nobody imports it."""
