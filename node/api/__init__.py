"""HTTP: the OpenAI dialect for any client, and what the terminal app and the command line need beside it."""
