"""One file per command; each composes packages that do not know each other."""
