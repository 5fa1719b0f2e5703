"""The cases of `check`, by what they are about."""
