"""Everything that a campaign writes down, and reading it: the journal, the history, the files of attempts."""
