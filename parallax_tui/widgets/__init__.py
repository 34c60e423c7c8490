"""Painters on Textual's line API. They show what they are given, tell by messages, and know nothing of the network."""
