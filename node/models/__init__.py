"""Which model, where its files are, tokenizer and chat template; hub, local folder, GGUF, the embedded default.

Imports neither torch nor transformers, and numpy, gguf, tokenizers, jinja2 and huggingface_hub only when they are used.
"""

from node.models.chat_model import ChatModel
from node.models.child import identify_in_child, import_in_child, prepare_in_child
from node.models.default_model import DEFAULT_NAME, DEFAULT_REF, fit_for_chat
from node.models.facts import read_facts
from node.models.held import held_bits
from node.models.identify import identify
from node.models.installed import InstalledModel, installed, remove
from node.models.preparing import import_file, prepare
from node.models.progress import Phase, Report
from node.models.text_stream import TextStream

__all__ = [
    "DEFAULT_NAME",
    "DEFAULT_REF",
    "ChatModel",
    "InstalledModel",
    "Phase",
    "Report",
    "TextStream",
    "fit_for_chat",
    "held_bits",
    "identify",
    "identify_in_child",
    "import_file",
    "import_in_child",
    "installed",
    "prepare",
    "prepare_in_child",
    "read_facts",
    "remove",
]
