"""What the commands of the command line do. Each imports what it needs when it needs it, and may print."""
