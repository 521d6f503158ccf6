"""The subcommands of ``fastgen``: each file has ``add(subparsers)`` and a function that runs it."""
