"""One file per subcommand of `fogline`; each has `add_arguments(parser)` and `run(arguments) -> exit code`."""
