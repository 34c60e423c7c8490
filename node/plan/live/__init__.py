"""The plan of a living swarm: from the members' records to a proposal."""
