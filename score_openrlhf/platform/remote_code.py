"""A model's own Python file in; refused unless the configuration trusts the model, in every process, out.

OpenRLHF loads every model and tokenizer with `trust_remote_code=True`. All of transformers' ways to such a file go
through one function, which is guarded here; the trusted models come from the driver in an environment variable. Active
on every platform: nothing about it is special to CPUs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from score_openrlhf.errors import UserError
from score_openrlhf.platform.hooks import Upstream, after_import

OPTIONAL = "custom_generate/generate.py"  # transformers/generation/utils.py, load_custom_generate
TRUSTED_VARIABLE = "SCORE_OPENRLHF_TRUSTED_MODELS"


def trust(models: Sequence[str]) -> None:
    """From now on the code of these models (absolute paths, hub names) may run, here and in what is started from here;
    that of no other."""
    os.environ[TRUSTED_VARIABLE] = "\n".join(models)


def _has(model: str, module_file: str, options: dict[str, Any]) -> bool:
    """Whether the model comes with this file; of a hub's it is looked up, without being run."""
    if os.path.isdir(model):
        return os.path.isfile(os.path.join(model, module_file))
    from transformers.utils import cached_file

    passed = ("cache_dir", "force_download", "token", "revision", "local_files_only", "repo_type")
    try:
        known = {key: options[key] for key in passed if key in options}
        return cached_file(model, module_file, **known) is not None
    except OSError:
        return False


@after_import(
    "remote code",
    "transformers.dynamic_module_utils",
    Upstream("transformers/dynamic_module_utils.py", 346, "def get_cached_module_file("),
    Upstream("transformers/dynamic_module_utils.py", 612, "    final_module = get_cached_module_file("),
    Upstream("openrlhf/utils/utils.py", 45, "AutoConfig.from_pretrained(pretrain, trust_remote_code=True)"),
    Upstream("openrlhf/utils/utils.py", 59, "AutoProcessor.from_pretrained(pretrain, trust_remote_code=True)"),
    Upstream("openrlhf/utils/utils.py", 70, "AutoTokenizer.from_pretrained(pretrain, trust_remote_code=True"),
    Upstream("openrlhf/models/actor.py", 151, "trust_remote_code=True"),
    Upstream("openrlhf/models/model.py", 69, "AutoConfig.from_pretrained(model_name_or_path, trust_remote_code=True)"),
    Upstream("openrlhf/models/model.py", 113, "trust_remote_code=True"),
    Upstream(
        "openrlhf/trainer/ray/vllm_engine.py", 232, "AutoProcessor.from_pretrained(pretrain, trust_remote_code=True)"
    ),
)
def guard(module: Any) -> None:
    """Refuse the code of models that are not trusted, before it is copied, let alone run."""
    upstream = module.get_cached_module_file

    def get_cached_module_file(pretrained_model_name_or_path: Any, module_file: str, *args: Any, **kwargs: Any) -> str:
        model = str(pretrained_model_name_or_path)
        name = os.path.abspath(model) if os.path.isdir(model) else model
        trusted = name in os.environ.get(TRUSTED_VARIABLE, "").split("\n")
        # of every model that it trusts transformers also asks for one that few have, and takes an OSError for a no
        if not trusted and (module_file != OPTIONAL or _has(model, module_file, kwargs)):
            raise UserError(
                f"{name} comes with Python code of its own ({module_file}), which would run on this machine to load "
                "it: set trust_remote_code=true for the solver, guidance_trust_remote_code=true for the guidance "
                "model, if you have read it and trust it"
            )
        return upstream(pretrained_model_name_or_path, module_file, *args, **kwargs)

    module.get_cached_module_file = get_cached_module_file
