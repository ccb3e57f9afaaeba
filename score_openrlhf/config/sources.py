"""A configuration file -> the files its `defaults:` lists name, in merge order, each with its raw values (Hydra)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import version as hydra_version

# Hydra's public compose() merges the files and forgets which of them set a value, so its search path and its
# defaults lists are used directly. Private modules: the package pins hydra-core 1.3.
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.defaults_list import create_defaults_list
from hydra.core.default_element import ResultDefault
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigLoadError, ConfigResult
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from score_openrlhf.config.errors import ConfigError
from score_openrlhf.config.packaged import PROJECT_CONFIGS, find, label


@dataclass(frozen=True)
class SourceFile:
    """The raw values one file sets, under the package (dotted section, may be empty) Hydra puts them in."""

    label: str  # as shown to people, e.g. configs/score_math.yaml
    package: str
    values: Any  # nested dict, interpolations as text


def compose_files(path: str) -> list[SourceFile]:
    """The files that make up the configuration `path` (`packaged.find`), later ones winning, as Hydra composes them.

    Files that a `defaults:` list names are searched beside it first, then among those of the package. Raises
    ConfigError for a missing or malformed file.
    """
    file = find(path)
    hydra_version.setbase("1.3")
    Plugins.instance()  # registers the reader of file:// search paths
    search_path = ConfigSearchPathImpl()
    search_path.append("main", f"file://{file.parent}")
    search_path.append("score_openrlhf", f"file://{PROJECT_CONFIGS}")
    repository = CachingConfigRepository(ConfigRepository(search_path))
    try:
        defaults = create_defaults_list(repository, file.stem, [], prepend_hydra=False, skip_missing=False).defaults
        results = [repository.load_config(str(default.config_path)) for default in defaults]
    except RecursionError as error:
        raise ConfigError([f"{file}: its defaults lists include each other without end; rename one file"]) from error
    except yaml.YAMLError as error:
        raise ConfigError([f"{_yaml_file(error, file)}: not valid YAML: {error}"]) from error
    except (HydraException, ConfigLoadError, OmegaConfBaseException, OSError, ValueError) as error:
        raise ConfigError([f"{file}: {error}"]) from error
    return [_source_file(default, result) for default, result in zip(defaults, results, strict=True)]


def _source_file(default: ResultDefault, result: ConfigResult | None) -> SourceFile:
    assert result is not None, default  # Hydra has refused names it cannot find
    file = Path(result.path.removeprefix("file://")) / f"{default.config_path}.yaml"
    if not isinstance(result.config, DictConfig):
        raise ConfigError([f"{file}: a configuration is a mapping of keys to values, this file holds a list"])
    package = default.package or ""
    return SourceFile(
        label=label(file),
        package="" if package == "_global_" else package,
        values=OmegaConf.to_container(result.config, resolve=False),
    )


def _yaml_file(error: yaml.YAMLError, fallback: Path) -> str:
    mark = getattr(error, "problem_mark", None)
    return mark.name if mark is not None else str(fallback)
