"""What stands between the callbacks and Lightning."""
