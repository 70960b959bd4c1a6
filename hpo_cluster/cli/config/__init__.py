"""The configuration: from Hydra overrides to checked, typed settings."""
