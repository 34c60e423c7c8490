"""Screens: they put widgets together, hand them view models, and turn keys and messages into deeds."""
