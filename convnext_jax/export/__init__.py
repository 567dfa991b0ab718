"""Models as files that run elsewhere, without this package."""
