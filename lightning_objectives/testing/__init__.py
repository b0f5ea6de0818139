"""The laws of the kinds as public functions, to be run on a method of your own."""
