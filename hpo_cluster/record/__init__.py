"""What a campaign writes to disk, and how it is read: the journal, the history, the files of each attempt."""
