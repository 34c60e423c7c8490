"""The headless member of a swarm: membership, planning, one request's way through the hops, HTTP.

Knows nothing of terminals: textual and rich are never imported below this package.
"""

__version__ = "0.1.0"
