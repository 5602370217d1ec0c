"""The live path of one request."""
