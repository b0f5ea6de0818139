"""test-time adaptation."""
