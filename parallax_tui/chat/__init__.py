"""The conversation as plain data, and the way from the node's chunks to its text. No Textual, no sockets."""

from parallax_tui.chat.answers import Answered, Piece, Refused, decode_chunk
from parallax_tui.chat.cleaning import clean
from parallax_tui.chat.conversation import Conversation, Message

__all__ = ["Answered", "Conversation", "Message", "Piece", "Refused", "clean", "decode_chunk"]
