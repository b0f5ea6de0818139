"""Runs the tests with the lowest versions, the newest, and the other name of Lightning: ``make test-compat``."""
