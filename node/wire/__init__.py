"""What travels and is stored: records, plans, hop frames, events. Schema-checked, versioned, bounded. No I/O."""
