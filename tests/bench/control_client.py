"""An HTTP client for a node's control endpoint, for benchmarks that ask much."""

from __future__ import annotations

import httpx

from node.home import Control


def open_client(control: Control, timeout_s: float | None = None) -> httpx.Client:
    """The caller closes it."""
    transport = httpx.HTTPTransport(uds=control.socket_path, verify=False, trust_env=False)
    base_url = "http://node" if control.socket_path is not None else f"http://127.0.0.1:{control.port}"
    headers = {"Authorization": f"Bearer {control.token}"} if control.token else {}
    return httpx.Client(transport=transport, base_url=base_url, headers=headers, timeout=timeout_s, trust_env=False)
