"""What the screens show, computed from the node's state. Pure: no Textual, no I/O, no clock."""
