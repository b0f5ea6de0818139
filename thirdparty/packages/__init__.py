"""One file for each package: the versions, the cases, and what the package does to callbacks."""
