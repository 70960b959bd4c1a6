"""What the commands of the command line do. Each imports what it needs when it needs it, and may print."""

#: Exit statuses: all is well, a campaign ended badly, the input is wrong, interrupted.
OK, BAD_END, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
