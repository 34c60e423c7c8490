"""Weights where they lie: GGUF files and safetensors, read by name, in the form that they came in.

Pure but for reading files: no tensor library, no network. Known to `models`, which looks at files before they are
loaded, and to `engine`, which loads them. Begin at `folder.open_weights`; `base` says what it gives, `blocks` in which
form. The headers' readers do without numpy, which the node's own process never needs.
"""
