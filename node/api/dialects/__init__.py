"""The dialects in which clients ask and are answered: OpenAI's chat, completions and responses, Anthropic's, Ollama's.

Each takes a body apart into the one internal `Ask`, says which of its names it honours, which change nothing and which
it refuses, and writes what comes of it, whole or as a stream, and errors, in its own form.
"""
