"""What a model costs: bytes, arithmetic, and the time of a stage on a machine."""
