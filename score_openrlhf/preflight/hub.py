"""A configuration in; offline mode where it names something on the hub and the hub cannot be reached.

Without it every file of every model and data set is asked for again and again, for minutes, before the error comes;
with it what is cached here is used, and what is not is an error at once, here and in every role.
"""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

from score_openrlhf.config.paths import looks_like_path

TIMEOUT_SECONDS = 3.0
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


def offline_without_a_hub(*names: str | None) -> str | None:
    """Switch the Hugging Face libraries to offline mode if one of `names` is on the hub and it cannot be reached.

    Returns a sentence that says so, None if nothing was changed. Call it before transformers and datasets are used;
    `datasets` reads the environment when it is imported.
    """
    hub_names = [name for name in names if name and not looks_like_path(name)]
    if not hub_names or os.environ.get("HF_HUB_OFFLINE") or any(os.environ.get(name) for name in PROXIES):
        return None
    from huggingface_hub import constants

    endpoint = urlsplit(constants.ENDPOINT)
    port = endpoint.port or (443 if endpoint.scheme == "https" else 80)
    try:
        socket.create_connection((endpoint.hostname or "", port), timeout=TIMEOUT_SECONDS).close()
        return None
    except OSError as error:
        os.environ["HF_HUB_OFFLINE"] = "1"
        constants.HF_HUB_OFFLINE = True
        return f"the hub cannot be reached ({error}): of {', '.join(hub_names)} only what is cached here is used"
