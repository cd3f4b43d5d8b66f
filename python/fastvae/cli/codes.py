"""Exit codes of the command."""

OK = 0
FAILED = 1
WRONG_USE = 2
INTERRUPTED = 130
