"""Trained weights, from whatever a user names: a run, a file, a repository, a published name."""
