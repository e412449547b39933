"""The command line: subcommands only."""
