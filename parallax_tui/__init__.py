"""The terminal side of Parallax: chat and topology, drawn by Textual, told by a node over HTTP."""
