"""onnxruntime itself, imported in this one place.

Its official builds send usage events to their makers, over a thread that is started with the import. What a node does
is nobody's business, so that is switched off before, by the variable that they name for it (`Privacy.md` of the
package).
"""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime as ort

__all__ = ["ort"]
