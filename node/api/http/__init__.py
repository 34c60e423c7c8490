"""HTTP itself: listeners, connections, who is let in, bodies, streams, errors. Knows no route."""
