"""The machines of a pool: what they have, how far apart they are, what would be missing."""
