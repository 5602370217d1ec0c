"""Recordings: what clients saw of real services, and the requests that real users sent."""
