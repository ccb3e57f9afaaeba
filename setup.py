"""Metadata and tools are in pyproject.toml; here is what it cannot say: `configs/` is part of the package."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """A wheel holds `configs/` as score_openrlhf/configs/; an editable install reads the project's own."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "score_openrlhf", "configs")
            self.mkpath(str(target))
            for file in sorted(Path("configs").glob("*.yaml")):
                self.copy_file(str(file), str(target / file.name))


setup(cmdclass={"build_py": BuildWithConfigs})
