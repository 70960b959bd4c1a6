"""Exchange with other tools: hands a campaign's trials on, and takes in evaluations that were made elsewhere."""
